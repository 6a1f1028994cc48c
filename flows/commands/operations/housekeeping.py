"""The commands `jora runs`, `jora why`, `jora gc` and `jora pin`, which look after a store."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands.common_options import Config, Json, Set, load, print_json
from flows.commands.print_pipeline import KEY_LENGTH, print_table
from flows.engine.keys import Identity, identify
from flows.engine.manifest_index import flatten
from flows.engine.plan import assess, changes, nearest
from flows.engine.shared.shared_store import open_store
from flows.engine.stage import stage_named
from flows.housekeeping.collect import Removal, choose, collect, parse_age
from flows.housekeeping.stored_runs import StoredRun, find_run, main_measures, read_contents, unpin
from flows.housekeeping.stored_runs import pin as pin_run
from flows.stages import STAGES
from jora_core.base.errors import InputError
from jora_core.base.progress import duration

SHOWN_RUNS = 20
MOST_NAMED = 20  # changes of a kind, of `why`


def runs(
    config: Config = None,
    all_runs: Annotated[bool, typer.Option("--all")] = False,
    keys: Annotated[bool, typer.Option("--keys")] = False,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """List the runs of a store, with their sizes.

    Shows when each run began, of which configuration, how it ended, how many stages it computed and found in
    the store, the main scores of its model, and by what it was started. Below are the sizes of the store by
    stage. `compare` sets runs side by side, `gc` removes what no kept run needs, `pin` keeps a run.

    Args:
        config: configuration file, whose store is listed.
        all_runs: List all runs, not only the newest 20.
        keys: Also list the key of each stage of each run.
        overrides: changes of single values of the configuration.
        as_json: print JSON instead of text.
    """
    store = open_store(load(config, overrides))
    contents = read_contents(store)
    shown = contents.runs if all_runs or as_json else contents.runs[:SHOWN_RUNS]
    sizes = contents.sizes_by_stage()
    if as_json:
        rows = [
            {
                **_run_as_json(run),
                "measures": main_measures(store, run),
                "bytes": contents.size(run.artifacts),
            }
            for run in shown
        ]
        stages = {stage: {"artifacts": count, "bytes": size} for stage, (count, size) in sizes.items()}
        print_json({"store": str(store.root), "runs": rows, "stages": stages})
        return
    if not contents.runs:
        print(f"no runs in {store.root}")
        return
    print_table(
        ("run, from (UTC)", "configuration", "took", "result", "ran", "score", "size", "started by"),
        [
            (
                run.record.id + (", pinned" if run.pinned else ""),
                _configuration(run),
                _duration(run),
                run.record.result,
                f"{len(run.computed)} of {len(run.computed) + len(run.cached)}",
                _scores(main_measures(store, run)),
                _bytes(contents.size(run.artifacts)),
                run.record.started_by or "-",
            )
            for run in shown
        ],
    )
    if keys:
        print_table(
            ("run", "stage", "", "key"),
            [
                (run.record.id, stage, "ran" if stage in run.computed else "", key)
                for run in shown
                for stage, key in run.record.keys.items()
            ],
        )
    if len(shown) < len(contents.runs):
        print(f"{len(contents.runs) - len(shown)} older runs; --all lists them")
    for run in shown:
        if run.record.message:
            print(f"{run.record.id}: {run.record.message}")
    print()
    print_table(
        ("stage", "artifacts", "size"),
        [(stage, f"{count:,}", _bytes(size)) for stage, (count, size) in sizes.items()],
    )
    print(f"all artifacts: {_bytes(contents.size(contents.artifacts))} in {store.root}")


def why(
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="Name of the stage, as in `jora plan`.")],
    config: Config = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Say what a stage's key is made of, and what has changed.

    Compares with the artifact of the stage and project that has the fewest differences. Writes nothing.

    Args:
        stage: name of the stage.
        config: configuration file.
        overrides: changes of single values of the configuration.
        as_json: print JSON instead of text.
    """
    settings = load(config, overrides)
    name = stage_named(stage, settings, STAGES).name
    store = open_store(settings)
    identities = identify(settings, STAGES, until=name)
    identity = identities[name]
    checks = {one: store.check(one, identities[one].key) for one in (*identity.upstream, name)}
    reason = assess(identity, checks, store)
    last = checks[name].manifest or nearest(identity, store)
    changed = changes(identity, last, most=MOST_NAMED) if last else []
    if as_json:
        parts: dict[str, Any] = {
            "stage": name,
            "key": identity.key,
            "version": identity.version,
            "settings": dict(flatten(identity.config)),
            "inputs": dict(identity.inputs),
            "upstream": dict(identity.upstream),
            "code": dict(identity.code),
            "action": "run" if reason else "cached",
            "because": reason or "up to date",
            "last": last["key"] if last else None,
            "changed": changed,
        }
        print_json(parts)
        return
    outcome = f"would run: {reason}" if reason else "is up to date"
    print(f"{name} {identity.key[:KEY_LENGTH]} {outcome}\n")
    print_table(("part of the key", "value"), _key_parts(identity))
    if last is None:
        print("nothing to compare with: the store has no artifact of this stage and project")
    elif not changed:
        print(f"no difference from {last['key'][:KEY_LENGTH]} of {last['ended'][:16].replace('T', ' ')} UTC")
    else:
        print(f"changed since {last['key'][:KEY_LENGTH]} of {last['ended'][:16].replace('T', ' ')} UTC:")
        for line in changed:
            print(f"  {line}")


def gc(
    config: Config = None,
    keep: Annotated[int | None, typer.Option("--keep", metavar="N", min=0)] = None,
    older_than: Annotated[str | None, typer.Option("--older-than", metavar="AGE")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run")] = False,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Remove artifacts that no kept run needs.

    Without an option, the newest 5 runs of each project are kept. With both options, a run is removed only if
    both allow it. A run that is pinned or in progress is always kept, with its artifacts and those that
    they were made from. Where a number of runs is kept, the newest run of each project that exported is kept
    too, because gates compare with it. Refuses while a run is in progress.

    \b
    Examples:
      jora gc --dry-run
      jora gc --keep 3
      jora gc --older-than 30d

    Args:
        config: configuration file, whose store is cleaned up.
        keep: Keep this many of the newest runs of each project.
        older_than: Remove only what is older than this, such as 30d, 12h or 2w.
        dry_run: Say what would be removed, and remove nothing.
        overrides: changes of single values of the configuration.
        as_json: print JSON instead of text.
    """
    settings = load(config, overrides)
    age = parse_age(older_than) if older_than is not None else None
    store = open_store(settings)
    # A store that does not exist yet is not created for a clean-up.
    looks = dry_run or not store.exists
    removal = choose(read_contents(store), keep, age) if looks else collect(store, keep, age)
    if as_json:
        print_json(_removal_as_json(removal, dry_run))
        return
    verb = "would remove" if dry_run else "removed"
    for stage, key in removal.artifacts:
        print(f"{verb} {stage} {key[:KEY_LENGTH]}")
    print(
        f"{verb}: {len(removal.artifacts)} artifacts ({_bytes(removal.bytes)}), {len(removal.runs)} runs; "
        f"kept: {len(removal.kept)} runs"
    )


def pin(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Beginning of a run's id, or `latest`.")],
    config: Config = None,
    remove: Annotated[bool, typer.Option("--remove")] = False,
    overrides: Set = None,
) -> None:
    """Keep a run from removal.

    `jora gc` then keeps the run and everything that its artifacts were made from.

    Args:
        run: beginning of the run's id.
        config: configuration file, whose store has the run.
        remove: Remove the pin.
        overrides: changes of single values of the configuration.
    """
    store = open_store(load(config, overrides))
    found = find_run(read_contents(store), run).record.id
    if not remove:
        pin_run(store, found)
        print(f"pinned {found}")
    elif unpin(store, found):
        print(f"pin of {found} removed")
    else:
        raise InputError(f"run {found} is not pinned; `jora runs` shows the pins")


def _key_parts(identity: Identity) -> list[tuple[str, str]]:
    rows = [("version", str(identity.version))]
    rows += [(key, str(value)) for key, value in flatten(identity.config)]
    rows += [(f"input {name}", digest[:KEY_LENGTH]) for name, digest in sorted(identity.inputs.items())]
    rows += [(f"upstream {name}", key[:KEY_LENGTH]) for name, key in identity.upstream.items()]
    # One row: a stage has about a hundred files of code.
    return [*rows, ("code", f"{len(identity.code)} files")]


def _run_as_json(run: StoredRun) -> dict[str, Any]:
    return {
        **asdict(run.record),
        "computed": list(run.computed),
        "cached": list(run.cached),
        "pinned": run.pinned,
    }


def _removal_as_json(removal: Removal, dry_run: bool) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "artifacts": [{"stage": stage, "key": key} for stage, key in removal.artifacts],
        "bytes": removal.bytes,
        "runs": [run.record.id for run in removal.runs],
        "kept": [run.record.id for run in removal.kept],
    }


def _configuration(run: StoredRun) -> str:
    """Return the project, and the configuration's file where it has another name."""
    name = Path(run.record.config).name
    known = run.record.project or "-"
    return known if Path(name).stem in ("", known) else f"{known} ({name})"


def _scores(measures: dict[str, dict[str, Any]]) -> str:
    """Return each measure with its value, such as `reply@1 0.512`."""
    known = [f"{name} {score['value']:.3f}" for name, score in measures.items() if score["value"] is not None]
    return ", ".join(known) or "-"


def _duration(run: StoredRun) -> str:
    if not run.record.ended:
        return "-"
    begun, ended = (datetime.fromisoformat(text) for text in (run.record.started, run.record.ended))
    return duration(round((ended - begun).total_seconds()))


def _bytes(size: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"
