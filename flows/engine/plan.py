"""What a run would do and why, before it does it.

A stage is *current*, and does nothing, when its artifact exists under its key, every file of it verifies,
and the upstream files that it was made from are byte for byte those of today. :func:`assess` is that rule,
for the plan and for the run alike. One thing is only known afterwards: whether a stage that must run again
under an unchanged key (a damaged or forced artifact) reproduces its files. Stages are deterministic, so the
plan says `cached` for what comes after; where the files do differ, say after a change of hardware, the run
notices and goes on with the next stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from flows.configuration.schema import PipelineConfig
from flows.engine.artifact_store import Check, Manifest, Store
from flows.engine.keys import Identity, digest_reads, identify
from flows.engine.stage import Registry, stage_named, stages_of
from jora_core.base.errors import InputError

Action = Literal["cached", "run"]
MOST_REASONS = 3
MOST_FILES = 2  # of changed code; their paths are long


@dataclass(frozen=True)
class PlannedStage:
    """One line of the plan."""

    name: str
    action: Action
    reason: str
    key: str


def make_plan(
    config: PipelineConfig,
    store: Store,
    registry: Registry,
    *,
    only: str | None = None,
    start: str | None = None,
    force: bool = False,
) -> list[PlannedStage]:
    """Say for each selected stage whether it would run, and why. Nothing is written.

    Args:
        config: what to run on what.
        store: where the artifacts are.
        registry: name to stage.
        only: see `select`.
        start: see `select`.
        force: plan to run the selected stages even where their artifacts are current.

    Returns:
        One line for each selected stage, in the order in which they run.

    Raises:
        InputError: a missing input, an unknown stage, or a stage outside the selection that has no whole
            artifact.
    """
    identities = identify(config, registry)
    selected = select(config, registry, only=only, start=start)
    # Once for all stages: a check reads every byte of the artifact, and most artifacts are read by
    # several stages.
    checks = {name: store.check(name, identity.key) for name, identity in identities.items()}
    running: set[str] = set()
    plan: list[PlannedStage] = []
    for name in selected:
        identity = identities[name]
        for upstream in identity.upstream:
            # Refuse now, before an earlier stage of the selection has worked for hours.
            if upstream not in selected and not checks[upstream].whole:
                raise missing_upstream(name, upstream, checks[upstream])
        reason = assess(identity, checks, store, running)
        if force and reason is None:
            reason = "forced"
        if reason is not None:
            running.add(name)
        # Forced or damaged artifacts upstream run again under the same key; see the module's docstring.
        remade = [upstream for upstream in identity.upstream if upstream in running]
        cached = f"up to date, as {remade[0]} makes the same files again" if remade else "up to date"
        plan.append(PlannedStage(name, "run" if reason else "cached", reason or cached, identity.key))
    return plan


def select(
    config: PipelineConfig, registry: Registry, *, only: str | None = None, start: str | None = None
) -> list[str]:
    """Return the names of the stages to look at, in the order in which they run.

    Args:
        config: whose stages are meant.
        registry: name to stage.
        only: this stage alone.
        start: this stage and those after it. Without `only` and `start`: all stages.

    Raises:
        InputError: unknown stage, or both given.
    """
    names = [stage.name for stage in stages_of(config, registry)]
    if only and start:
        raise InputError("--only and --from exclude each other; give one of them")
    if only:
        return [stage_named(only, config, registry).name]
    return names[names.index(stage_named(start, config, registry).name) :] if start else names


def assess(
    identity: Identity,
    checks: Mapping[str, Check],
    store: Store,
    running: set[str] | frozenset[str] = frozenset(),
) -> str | None:
    """Return why a stage must run, or None if its artifact is current.

    Args:
        identity: of the stage.
        checks: the state of the stage's own and its upstream stages' artifacts under their keys.
        store: where to look for an older artifact of the stage, to say what changed since.
        running: names of the stages that will run before it.
    """
    check = checks[identity.stage]
    if check.damage:
        return f"artifact damaged: {check.damage}"
    if check.manifest is None:
        return _why_absent(identity, store.newest_manifest(identity.stage), running)
    for upstream in identity.reads:
        # An upstream stage that will run has no files yet to compare with; the run compares after it.
        present = checks[upstream.stage].manifest
        if upstream.stage in running or present is None:
            continue
        # The key says what the upstream files should be, this digest what they were. Other hardware can
        # give other last bits under the same key.
        recorded = check.manifest["upstream"][upstream.stage]["digest"]
        if digest_reads(present["outputs"], upstream.reads) != recorded:
            return f"upstream {upstream.stage} made other files than this was made from"
    return None


def missing_upstream(stage: str, upstream: str, check: Check) -> InputError:
    """Return the error of a stage that was selected alone and whose upstream artifact is not there.

    Args:
        stage: the selected stage.
        upstream: the stage that makes the artifact.
        check: what the store found under its key.
    """
    state = f"is damaged ({check.damage})" if check.damage else "does not exist for this configuration"
    return InputError(
        f"{stage} reads the artifact of {upstream}, which {state}; run `jora run --from {upstream}`"
    )


def _why_absent(identity: Identity, last: Manifest | None, running: set[str] | frozenset[str]) -> str:
    """Compare with the stage's newest artifact: what changed since."""
    if last is None:
        return "no artifact"
    # Most specific first, because only the first few are shown: what the user typed, then data, then
    # code, and last what merely follows from another stage.
    reasons = [f"config changed: {line}" for line in _changed_values(last["config"], identity.config)]
    reasons += [f"input changed: {name}" for name in _changed_inputs(last["inputs"], identity)]
    if last["version"] != identity.version:
        reasons.append(f"stage version {last['version']} → {identity.version}")
    changed_code = sorted(
        label
        # Both sides: a module that is gone changes the key as much as a new one.
        for label in {*last["code"], *identity.code}
        if last["code"].get(label) != identity.code.get(label)
    )
    if changed_code:
        # One reason, however many files: after an update of this package they are nearly all files.
        reasons.append(f"code changed: {_some_of(changed_code)}")
    for name, key in identity.upstream.items():
        if name in running:
            reasons.append(f"upstream {name} runs")
        elif last["upstream"].get(name, {}).get("key") != key:
            reasons.append(f"upstream {name} changed")
    if not reasons:
        return "no artifact"
    more = f"; and {len(reasons) - MOST_REASONS} more" if len(reasons) > MOST_REASONS else ""
    return "; ".join(reasons[:MOST_REASONS]) + more


def _some_of(files: Sequence[str]) -> str:
    """Name the first files and count the others: `a.py, b.py and 81 more files`."""
    rest = len(files) - MOST_FILES
    # Naming the last one takes no more room than `1 more file`.
    if rest <= 1:
        return ", ".join(files)
    return f"{', '.join(files[:MOST_FILES])} and {rest} more files"


def _changed_values(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Lines like `phases.1.optim.learning_rate 0.0001 → 0.0002`."""
    old, new = dict(_flatten(before)), dict(_flatten(after))
    return [
        f"{key} {_show(old, key)} → {_show(new, key)}"
        for key in sorted({*old, *new})
        # Presence is compared, too: a key that is gone differs from a key whose value is None.
        if (key in old, old.get(key)) != (key in new, new.get(key))
    ]


def _changed_inputs(before: Mapping[str, Any], identity: Identity) -> list[str]:
    """Paths of the input files whose content differs, the gone ones last."""
    names = [
        identity.paths[name]
        for name, digest in sorted(identity.inputs.items())
        if before.get(name, {}).get("sha256") != digest
    ]
    # The name stays when a corpus moves, so a moved file is neither changed nor gone.
    return names + [
        f"{before[name]['path']} is gone" for name in sorted(before) if name not in identity.inputs
    ]


def _flatten(value: Any, prefix: str = "") -> Sequence[tuple[str, Any]]:
    # An empty mapping is a value of its own; flattened it would vanish, and with it the change.
    if isinstance(value, Mapping) and value:
        return [
            pair
            for name, child in value.items()
            for pair in _flatten(child, f"{prefix}.{name}" if prefix else name)
        ]
    return [(prefix, value)]


def _show(values: Mapping[str, Any], key: str) -> str:
    """A value as short text; `(none)` where the key is not there."""
    if key not in values:
        return "(none)"
    value = values[key]
    # `100` instead of `100.0`, and only where no digit is lost.
    text = f"{value:g}" if isinstance(value, float) and value == float(f"{value:g}") else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
