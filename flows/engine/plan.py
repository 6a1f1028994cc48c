"""The plan of a run: which stages would run, and why.

The artifact of a stage is *current* under three conditions. It exists under the stage's key, all its files
have the recorded digests, and the upstream files that it was made from are unchanged. :func:`assess` checks
these conditions for the plan and for the run. A stage with a current artifact does not run.

The plan cannot know whether a stage that runs again under an unchanged key (after damage or with `--force`)
writes the same files. Stages are deterministic, so the plan says `cached` for the stages after it. If the
files differ, for example on other hardware, the run finds the difference and runs the next stage too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

from flows.configuration.schema import PipelineConfig
from flows.engine.artifact_store import Check, Manifest, Store, is_sealed
from flows.engine.keys import Identity, digest_reads, identify
from flows.engine.manifest_index import IndexRow, StageIndex, flatten
from flows.engine.stage import Registry, stage_named, stages_of
from jora_core.base.digests import json_digest
from jora_core.base.errors import InputError

Action = Literal["cached", "run"]
MOST_NAMED = 2  # changes of a kind; paths are long


@dataclass(frozen=True)
class PlannedStage:
    """One line of the plan: a stage, whether it would run, and why."""

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
    names: Sequence[str] | None = None,
    force: bool = False,
    fetch: bool = False,
) -> list[PlannedStage]:
    """Plan a run: find for each selected stage whether it would run, and why.

    Without `fetch` it writes nothing but an index of manifests in the store's cache.

    Args:
        config: configuration of the pipeline.
        store: the artifact store.
        registry: name to stage.
        only: see `select`.
        start: see `select`.
        names: the stages to run, in their order, in place of `only` and `start`.
        force: plan to run the selected stages even where their artifacts are current.
        fetch: first bring the artifacts of a shared store here.

    Returns:
        One line for each selected stage, in the order in which they run.

    Raises:
        InputError: an input is missing, a stage is unknown, or an upstream stage outside the selection has no
            whole artifact.
    """
    identities = identify(config, registry)
    selected = list(names) if names else select(config, registry, only=only, start=start)
    for name, identity in identities.items() if fetch else ():
        store.fetch(name, identity.key)
    # Once for all stages: a check reads every byte of the artifact, and most artifacts are read by
    # several stages.
    checks = {name: store.check(name, identity.key) for name, identity in identities.items()}
    running: set[str] = set()
    plan: list[PlannedStage] = []
    for name in selected:
        identity = identities[name]
        reason = assess(identity, checks, store, running)
        if force and reason is None:
            reason = "forced"
        if reason is not None:
            running.add(name)
        for upstream in identity.upstream if reason else ():
            # Refuse now, before an earlier stage of the selection has worked for hours.
            if upstream not in selected and not checks[upstream].whole:
                raise missing_upstream(name, identities[upstream], checks, config, store)
        plan.append(
            PlannedStage(
                name, "run" if reason else "cached", reason or _why_current(identity, running), identity.key
            )
        )
    return plan


def select(
    config: PipelineConfig, registry: Registry, *, only: str | None = None, start: str | None = None
) -> list[str]:
    """Return the names of the stages that `--only` or `--from` selects, in the order in which they run.

    Args:
        config: configuration that decides which stages exist.
        registry: name to stage.
        only: name of the only stage to select.
        start: name of the first stage to select. Without `only` and `start`, all stages are selected.

    Raises:
        InputError: a stage is unknown, or both `only` and `start` are given.
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
        identity: parts of the stage's key.
        checks: result of the check of the stage's artifact and of its upstream artifacts, by stage name.
        store: store with the older artifacts of the stage, for a reason that names what has changed.
        running: names of the stages that will run before this stage.
    """
    check = checks[identity.stage]
    if check.damage:
        return f"artifact damaged: {check.damage}"
    if check.manifest is None:
        return _why_absent(identity, nearest(identity, store), running)
    for upstream in identity.reads:
        # The files of an upstream stage that will run are not written yet. The run compares them later.
        present = checks[upstream.stage].manifest
        if upstream.stage in running or present is None:
            continue
        # The key says what the upstream files should be, and this digest what they were. Other hardware can
        # change the last bits of numbers under the same key.
        recorded = check.manifest["upstream"][upstream.stage]["digest"]
        if digest_reads(present, upstream.reads) != recorded:
            return f"upstream {upstream.stage} made other files than this was made from"
    return None


def _why_current(identity: Identity, running: set[str]) -> str:
    """Say why a stage does not run, although a stage that it reads from may run."""
    for name in identity.upstream:
        if name in running:
            parts = identity.upstream_parts.get(name)
            # A whole artifact upstream runs again under the same key only, forced or damaged; see the
            # module's docstring.
            what = (
                f"{name} changes nothing of {' and '.join(parts)}"
                if parts
                else f"{name} makes the same files again"
            )
            return f"up to date, as {what}"
    return "up to date"


def missing_upstream(
    stage: str, missed: Identity, checks: Mapping[str, Check], config: PipelineConfig, store: Store
) -> InputError:
    """Return the error for a selected stage whose upstream artifact is missing or damaged.

    Args:
        stage: name of the selected stage.
        missed: identity of the stage that writes the missing artifact.
        checks: results of the checks of artifacts by stage name, in the order in which the stages run.
        config: configuration of the pipeline, for the command that the error names.
        store: store with older artifacts of that stage, whose settings the error compares.
    """
    upstream = missed.stage
    damage = checks[upstream].damage
    state = f"is damaged ({damage})" if damage else "does not exist for this configuration"
    # The first one, because a run from there makes the others too.
    before = takewhile(lambda name: name != stage, checks)
    missing = [name for name in before if not checks[name].whole]
    first = missing[0] if missing else upstream
    more = f" (missing: {', '.join(missing)})" if len(missing) > 1 else ""
    others = "" if damage else _other_settings(missed, store)
    again = f"{others}: give the changes of its run again, or " if others else ""
    return InputError(
        f"{stage} reads the artifact of {upstream}, which {state}{more}; {again}run "
        f"`{config.command('run', '--from', first)}`"
    )


def _other_settings(identity: Identity, store: Store) -> str:
    """Return how the settings of a stage differ from those of its nearest artifact; "" without such.

    A run with changes (`--set`, the form) makes artifacts that a run without them does not find.
    """
    last = nearest(identity, store)
    if last is None:
        return ""
    changed = _changed_settings(identity, last)
    if not changed:
        return ""
    return f"the last one was made with other settings ({_some_of(changed, 'settings', MOST_NAMED)})"


def _why_absent(identity: Identity, last: Manifest | None, running: set[str] | frozenset[str]) -> str:
    """Say what has changed since the newest artifact of the stage."""
    if last is None:
        return "no artifact"
    return "; ".join(changes(identity, last, running)) or "no artifact"


def changes(
    identity: Identity,
    last: Manifest,
    running: set[str] | frozenset[str] = frozenset(),
    most: int = MOST_NAMED,
) -> list[str]:
    """Return what differs between a stage and an artifact, one line for each kind of difference.

    Args:
        identity: parts of the stage's key.
        last: manifest of the artifact.
        running: names of the stages that will run before this stage.
        most: number of changes of one kind that a line names; the others are counted.
    """
    # Most specific first: settings, then input files, then code, and last the changes of upstream stages.
    # One line for any number of changes of a kind, so that each kind is seen.
    values = _changed_settings(identity, last)
    lines = _counted("config changed: ", values, "settings", most)
    lines += _counted("input changed: ", _changed_inputs(last["inputs"], identity), "files", most)
    if last["version"] != identity.version:
        lines.append(f"stage version {last['version']} → {identity.version}")
    lines += _counted("code changed: ", _changed_code(last["code"], identity.code), "files", most)
    return lines + _changed_upstream(last["upstream"], identity, running)


def nearest(identity: Identity, store: Store) -> Manifest | None:
    """Return the manifest of the stage and project with the fewest differences; of several the newest.

    The artifact of another project may share the stage alone, and its differences explain nothing.
    """
    found: list[tuple[StageIndex, IndexRow, int]] = []
    for index in store.indexes(identity.stage):
        compare = _Comparison(identity, index)
        for row in index.rows:
            # Manifests of earlier versions name no project.
            if row.regular and identity.project and row.project not in (None, identity.project):
                continue
            differences = compare.count(row)
            if differences is not None:
                found.append((index, row, differences))
    # `ended` is ISO 8601 in UTC, so the order of the texts is the order of the times. The folder's own time
    # of change is lost when a store is copied.
    found.sort(key=lambda item: item[1].ended, reverse=True)
    for index, row, _ in sorted(found, key=lambda item: item[2]):
        manifest = index.read(row)
        # A damaged manifest explains nothing; the next one may.
        if manifest is not None and is_sealed(manifest):
            return manifest
    return None


def count_differences(manifest: Manifest, identity: Identity) -> int | None:
    """Return the number of differences between a manifest and an identity.

    None for a manifest of another project, of another format, or a damaged one. `nearest` counts the same
    from the index of the manifests.
    """
    if identity.project and manifest.get("project") not in (None, identity.project):
        return None
    try:
        found = len(_changed_values(dict(flatten(manifest["config"])), dict(flatten(identity.config))))
        # All of the code counts as one difference: an update of this package changes most files.
        found += manifest["version"] != identity.version
        found += manifest["code"] != dict(identity.code)
        found += len(_changed_upstream(manifest["upstream"], identity, frozenset()))
        return found + len(_changed_inputs(manifest["inputs"], identity))
    except (KeyError, TypeError, AttributeError):
        return None


class _Comparison:
    """Counts the differences between an identity and many manifests from their index."""

    def __init__(self, identity: Identity, index: StageIndex) -> None:
        self._identity = identity
        self._index = index
        self._code = json_digest(dict(identity.code))
        self._config = dict(flatten(identity.config))
        self._same = {
            place
            for place, (name, value) in enumerate(index.settings)
            if name in self._config and self._config[name] == value
        }
        self._same_files = {
            place for place, (name, digest) in enumerate(index.files) if identity.inputs.get(name) == digest
        }
        self._gone = {place for place, (name, _) in enumerate(index.files) if name not in identity.inputs}

    def count(self, row: IndexRow) -> int | None:
        """Return what `count_differences` returns for the manifest of the row."""
        if not row.regular:
            manifest = self._index.read(row)
            return None if manifest is None else count_differences(manifest, self._identity)
        # A setting that both have with one value changes nothing in what `_changed_values` finds for the
        # others, so only the others are compared.
        settings = self._index.settings
        kept = {settings[place][0] for place in row.config if place in self._same}
        before = dict(settings[place] for place in row.config if place not in self._same)
        after = {name: value for name, value in self._config.items() if name not in kept}
        found = len(_changed_values(before, after))
        found += row.version != self._identity.version
        found += row.code != self._code
        found += len(_changed_upstream(row.upstream, self._identity, frozenset()))
        found += len(self._identity.inputs) - len(self._same_files.intersection(row.inputs))
        return found + len(self._gone.intersection(row.inputs))


def _changed_settings(identity: Identity, last: Manifest) -> list[str]:
    """Return the settings that differ from those of an artifact. A phase is named by its stage."""
    lines = _changed_values(dict(flatten(last["config"])), dict(flatten(identity.config)))
    return [re.sub(r"^phases\.\d+\.", f"phases.{identity.stage}.", line) for line in lines]


def _counted(kind: str, changed: Sequence[str], noun: str, most: int) -> list[str]:
    """Return one line that names the first changes of a kind and counts the others, or none."""
    return [kind + _some_of(changed, noun, most)] if changed else []


def _changed_code(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    # Old and new files: a removed module changes the key, just as a new one does.
    return sorted(label for label in {*before, *after} if before.get(label) != after.get(label))


def _changed_upstream(
    before: Mapping[str, Any], identity: Identity, running: set[str] | frozenset[str]
) -> list[str]:
    """Return the upstream stages whose artifact, or whose part that this stage reads, is another one."""
    lines = []
    for name, key in identity.upstream.items():
        last = before.get(name, {})
        parts = identity.upstream_parts.get(name, {})
        old = last.get("parts", {})
        changed = [part for part, made in parts.items() if old.get(part) != made]
        if name in running:
            # Of a stage with parts, the parts decide: the others may be the reason why it runs.
            if changed or not parts:
                lines.append(f"upstream {name} runs" + (f" ({', '.join(changed)})" if changed else ""))
        elif changed or (not parts and last.get("key") != key):
            lines.append(f"upstream {name} changed" + (f" ({', '.join(changed)})" if changed else ""))
    return lines


def _some_of(names: Sequence[str], noun: str, most: int) -> str:
    """Name the first few and count the others, as in `a.py, b.py and 81 more files`."""
    rest = len(names) - most
    # Naming the last one takes no more room than `1 more file`.
    if rest <= 1:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {rest} more {noun}"


def _changed_values(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return changed settings, given flattened, as lines like `optim.learning_rate 0.0001 → 0.0002`."""
    # A section that is given now and was not, or the reverse, is one change, not one for each of its values.
    whole = _sections(old, new, "is given now") | _sections(new, old, "is not given any more")
    for section in whole:
        old = {key: value for key, value in old.items() if key != section and not _below(key, section)}
        new = {key: value for key, value in new.items() if key != section and not _below(key, section)}
    # An older artifact lacks the settings that were added since: one change, and none where they are empty.
    added = sorted(key for key, value in new.items() if key not in old and value is not None)
    lines = [f"{section} {text}" for section, text in sorted(whole.items())]
    lines += [
        f"{key} {_show(old, key)} → {_show(new, key)}"
        for key in sorted({*old, *new} - set(added))
        if old.get(key) != new.get(key)
    ]
    if len(added) == 1:
        return [*lines, f"{added[0]} (none) → {_show(new, added[0])}"]
    return [*lines, f"{_some_of(added, 'settings', MOST_NAMED)} are new"] if added else lines


def _sections(one: Mapping[str, Any], other: Mapping[str, Any], text: str) -> dict[str, str]:
    """Return the keys that are None in one and a whole section in the other, each with a text."""
    return {
        key: text
        for key, value in one.items()
        if value is None and any(_below(candidate, key) for candidate in other)
    }


def _below(key: str, section: str) -> bool:
    return key.startswith(f"{section}.")


def _changed_inputs(before: Mapping[str, Any], identity: Identity) -> list[str]:
    """Return the paths of the input files with changed content, then those of removed files."""
    names = [
        identity.paths[name]
        for name, digest in sorted(identity.inputs.items())
        if before.get(name, {}).get("sha256") != digest
    ]
    # The name stays when a corpus moves, so a moved file counts as neither changed nor removed.
    return names + [
        f"{before[name]['path']} is gone" for name in sorted(before) if name not in identity.inputs
    ]


def _show(values: Mapping[str, Any], key: str) -> str:
    """Return a value as short text, or `(none)` for a missing key."""
    if key not in values:
        return "(none)"
    value = values[key]
    # `100` instead of `100.0`, and only where no digit is lost.
    text = f"{value:g}" if isinstance(value, float) and value == float(f"{value:g}") else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
