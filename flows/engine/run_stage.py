"""Run one stage (:func:`execute_stage`) or several stages one after the other (:func:`run_stages`).

The Prefect tasks call `execute_stage` too, so the artifact store decides which stages run, with Prefect and
without.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from flows.configuration.schema import PipelineConfig
from flows.engine.artifact_store import ArtifactRef, Check, Store
from flows.engine.errors import DISK_FULL, StageFailed, one_line_os_errors
from flows.engine.keys import Identity, digest_inputs, digest_reads, identify
from flows.engine.plan import assess, missing_upstream
from flows.engine.run_records import recorded_run
from flows.engine.stage import CHECKPOINTS, BuildRecords, Registry, Stage, StageContext, stage_named
from jora_core.base.errors import InputError

MANIFEST_FORMAT = 1
# The versions of these packages are in the manifest, to explain a difference. They are not in the key.
RECORDED_PACKAGES = (
    "jax",
    "flax",
    "optax",
    "numpy",
    "pyarrow",
    "faiss-cpu",
    "sentence-transformers",
    "tokenizers",
)


def execute_stage(
    name: str,
    config: PipelineConfig,
    store: Store,
    registry: Registry,
    *,
    force: bool = False,
    on_start: Callable[[str], None] | None = None,
    build_records: BuildRecords | None = None,
) -> ArtifactRef:
    """Run a stage, unless its artifact is current.

    Args:
        name: name of the stage.
        config: configuration of the pipeline.
        store: the artifact store.
        registry: name to stage.
        force: run the stage even if its artifact is current.
        on_start: called with one line before the stage runs, and before a wait for another run of the stage.
        build_records: see `StageContext`.

    Raises:
        InputError: the input is wrong, an upstream artifact is missing or damaged, or the store cannot be
            written.
        StageFailed: the stage cannot finish. Errors of its child process stay unchanged.
    """
    started = time.monotonic()
    say = on_start or (lambda line: None)
    stage = stage_named(name, config, registry)
    # Computed here and not taken from the caller: inputs may have changed since the plan was made, and
    # the manifest must say what was read.
    identities = identify(config, registry, until=name)
    identity = identities[name]
    key = identity.key

    def look() -> tuple[dict[str, Check], str]:
        for other in (*identity.upstream, *(() if force else (name,))):
            store.fetch(other, identities[other].key)
        checks = {other: store.check(other, identities[other].key) for other in (*identity.upstream, name)}
        reason = assess(identity, checks, store) or ("forced" if force else "")
        for upstream in identity.upstream if reason else ():
            if not checks[upstream].whole:
                raise missing_upstream(name, identities[upstream], checks, config, store)
        return checks, reason

    _, reason = look()  # needs neither a lock nor the right to write
    if reason:
        with store.lock(
            name, key, on_wait=lambda who: say(f"waiting for {who} that makes the same artifact")
        ):
            # Again under the lock: another run may have made the artifact while this one waited.
            checks, reason = look()
            if reason:
                say(reason)
                also_read: list[tuple[str, str]] = []
                context = StageContext(
                    config=config,
                    key=key,
                    output_dir=store.begin(name, key),
                    work_dir=store.work_dir(name, key),
                    cache_dir=store.cache_dir,
                    upstream={other: store.path(other, made) for other, made in identity.upstream.items()},
                    # From the check under the lock, so that manifest and files belong together.
                    manifests={other: checks[other].manifest or {} for other in identity.upstream},
                    build_records=build_records,
                    fresh=force,
                    execute=partial(_execute_and_note, also_read, registry, force),
                    note_read=lambda *name: also_read.append(name),
                )
                _run(stage, identity, context, store, also_read)
                store.share(name, key, computed=True)
    if not reason:
        store.share(name, key, computed=False)
    return ArtifactRef(
        stage=name,
        key=key,
        path=str(store.path(name, key)),
        cached=not reason,
        seconds=round(time.monotonic() - started, 3),
        reason=reason,
    )


def run_stages(
    names: Iterable[str],
    config: PipelineConfig,
    store: Store,
    registry: Registry,
    *,
    force: bool = False,
    on_stage: Callable[[str, str], None] | None = None,
    on_done: Callable[[ArtifactRef], None] | None = None,
) -> list[ArtifactRef]:
    """Run stages one after the other in this process, without Prefect.

    Args:
        names: names of the stages, in the order in which they run.
        config: configuration of the pipeline.
        store: the artifact store.
        registry: name to stage.
        force: run the stages even where their artifacts are current.
        on_stage: called with the name of a stage and one line when the stage starts.
        on_done: called with the reference of each finished stage.

    Raises:
        InputError: see `execute_stage`.
        StageFailed: see `execute_stage`.
    """
    store.sweep()
    done: list[ArtifactRef] = []
    with recorded_run(store, config, {}) as run:
        for name in names:

            def start(line: str, name: str = name) -> None:
                # The default argument binds the name of this round; a plain closure would see the last one.
                run.begin()
                if on_stage:
                    on_stage(name, line)

            done.append(execute_stage(name, config, store, registry, force=force, on_start=start))
            run.finished(done[-1])
            if on_done:
                on_done(done[-1])
    return done


def _execute_and_note(
    noted: list[tuple[str, str]],
    registry: Registry,
    force: bool,
    name: str,
    config: PipelineConfig,
    store: Store,
) -> ArtifactRef:
    """Run a stage for another stage, and note what it has made among what the other has read.

    Args:
        noted: stage and key of each artifact that the other stage has read, to which this one is added.
        registry: name to stage.
        force: run the stage even if its artifact is current.
        name: name of the stage.
        config: configuration to run it with.
        store: the artifact store.
    """
    reference = execute_stage(name, config, store, registry, force=force)
    noted.append((reference.stage, reference.key))
    return reference


def _run(
    stage: Stage,
    identity: Identity,
    context: StageContext,
    store: Store,
    also_read: Sequence[tuple[str, str]],
) -> None:
    """Run a stage in a temporary folder and commit its artifact; the caller holds the lock of the key.

    Args:
        stage: the stage.
        identity: the parts of its key.
        context: what it is given.
        store: the artifact store.
        also_read: stage and key of what it reads besides its upstream artifacts; known when it has run.
    """
    key, config = identity.key, context.config
    begun = datetime.now(UTC)
    clock = time.monotonic()
    try:
        with one_line_os_errors("write to store", store.root, DISK_FULL):
            metrics = stage.run(context)
        # The key was computed from the inputs before the stage ran. A corpus that was replaced meanwhile
        # would be recorded under the digest of the old one.
        after = digest_inputs(stage.inputs(config))
        if moved := [name for name in identity.inputs if after.get(name) != identity.inputs[name]]:
            raise StageFailed(
                f"{identity.paths[moved[0]]} changed while {stage.name} was reading it; run again"
            )
    # Also for KeyboardInterrupt and SystemExit: no temporary folder may stay.
    except BaseException as error:
        store.abandon(stage.name, key)
        if isinstance(error, InputError) and not (context.work_dir / CHECKPOINTS).exists():
            store.finish_work(stage.name, key)  # without checkpoints, the next run starts anew
        raise
    store.commit(
        stage.name,
        key,
        {
            "format": MANIFEST_FORMAT,
            "stage": stage.name,
            "key": key,
            "version": identity.version,
            # The plan compares with artifacts of the same project.
            "project": identity.project,
            "config": identity.config,
            "inputs": {
                name: {"path": identity.paths[name], "sha256": digest}
                for name, digest in identity.inputs.items()
            },
            "upstream": _upstream(identity, context.manifests),
            # Not in the key: which artifacts these are follows from the settings, or from what was run
            # before.
            **({"also_read": [list(name) for name in dict.fromkeys(also_read)]} if also_read else {}),
            "parts": dict(stage.part_digests(metrics)),
            "code": dict(identity.code),
            "metrics": metrics,
            "started": begun.isoformat(),
            "ended": datetime.now(UTC).isoformat(),
            # From the monotonic clock, because the difference of the two times above is wrong after a change
            # of the system clock.
            "seconds": round(time.monotonic() - clock, 3),
            # For a user who compares two artifacts. In the key, the versions would make all stages run again
            # after each update of a package.
            "environment": _environment(),
        },
    )
    store.finish_work(stage.name, key)


def _upstream(identity: Identity, manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the key of each upstream artifact and the digest of the files that were read."""
    return {
        item.stage: {
            "key": identity.upstream[item.stage],
            "digest": digest_reads(manifests[item.stage], item.reads),
            "reads": list(item.reads),
            **({"parts": dict(parts)} if (parts := identity.upstream_parts.get(item.stage)) else {}),
        }
        for item in identity.reads
    }


# The versions cannot change while this process runs.
@cache
def _environment() -> dict[str, str]:
    """Return the versions of Python and of the packages that compute; they are part of no key."""
    found = {"python": platform.python_version(), "machine": platform.machine(), "system": platform.system()}
    for package in RECORDED_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
