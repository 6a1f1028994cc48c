"""The chain of artifacts behind a folder, with every digest verified.

The chain begins with an artifact's folder, or with an exported model that was copied out of its store, and
goes back by the `upstream` of each manifest to the input files. Four things are verified: that each manifest
is as it was written, that its parts give its key, that each file has its digest, and that each stage was made
from just these files of the stage before.

An export has what matters of all manifests before it in its `lineage.json`, so its chain can be followed
where there is no store.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from flows.engine.artifact_store import (
    Check,
    Manifest,
    Store,
    check_folder,
    is_sealed,
    read_manifest,
)
from flows.engine.code_files import REPOSITORY
from flows.engine.keys import digest_reads, key_of_manifest
from flows.engine.lineage_file import LINEAGE, portable
from flows.engine.manifest_index import MANIFEST
from flows.engine.run_records import read_records
from jora_core.base.digests import file_digest
from jora_core.base.errors import InputError
from jora_core.base.secrets import expand_variables, has_variables

OTHER_BYTES = "has other bytes than recorded"
SHORT = 12  # hexadecimal digits of a key that are shown

State = Literal["damaged", "changed", "absent"]
Name = tuple[str, str]  # stage and key of an artifact


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it was recorded.

    Attributes:
        state: `damaged` is a file of an artifact, `changed` an input file with other bytes, and `absent` what
            is not here, so that it could not be verified.
        what: the file or artifact.
        detail: what is wrong with it.
    """

    state: State
    what: str
    detail: str


@dataclass(frozen=True)
class Link:
    """One artifact of a chain.

    Attributes:
        manifest: its manifest, or the part of it that a `lineage.json` has.
        folder: its folder; None if it is not here.
    """

    manifest: Manifest
    folder: Path | None

    @property
    def name(self) -> Name:
        """Stage and key."""
        return self.manifest["stage"], self.manifest["key"]


@dataclass(frozen=True)
class Chain:
    """All artifacts behind a folder.

    Attributes:
        links: the artifacts, each one behind those that it was made from.
        findings: what is not as it was recorded.
        files: number of files whose digest was verified and is right, input files included.
        other_code: path of each source file that differs from the one here. Later code is no damage.
    """

    links: tuple[Link, ...]
    findings: tuple[Finding, ...] = ()
    files: int = 0
    other_code: tuple[str, ...] = ()

    @property
    def damaged(self) -> bool:
        """Whether something has other bytes than recorded."""
        return any(finding.state != "absent" for finding in self.findings)

    @property
    def manifests(self) -> dict[str, Manifest]:
        """The manifests by stage; of several artifacts of a stage, the one of the run itself."""
        return {link.manifest["stage"]: link.manifest for link in self.links}


@dataclass
class _Walk:
    """What is known during the walk back."""

    store: Store | None
    given_root: Path | None
    embedded: Mapping[str, Manifest] = field(default_factory=dict)
    links: dict[Name, Link] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    files: int = 0
    other_code: set[str] = field(default_factory=set)

    def damaged(self, what: str, detail: str) -> None:
        self.findings.append(Finding("damaged", what, detail))


def follow(folder: Path, store: Store | None = None, root: Path | None = None) -> Chain:
    """Follow and verify the chain of artifacts behind a folder.

    Args:
        folder: an artifact, a folder in it such as the exported `model/`, or a copy of one of these.
        store: store with the artifacts; by default the one that the folder lies in.
        root: folder that the recorded paths of input files are relative to; by default the one that the
            newest run of the artifact has recorded.

    Raises:
        InputError: the folder is no artifact and no export.
    """
    start = artifact_folder(folder)
    walk = _Walk(store or _store_of(start), root)
    copied = _read_lineage(start, walk)
    manifest = _verified(start, start.name, walk) if (start / MANIFEST).is_file() else None
    if manifest is not None:
        _visit_also_read(manifest, walk)
        _visit(Link(manifest, start), walk)
    elif copied is not None:
        _verify_copied_files(start, copied, walk)
        # Its own settings, inputs and code are in its manifest only.
        manifest = {name: copied[name] for name in ("stage", "key", "upstream", "outputs")}
        manifest |= {"inputs": {}, "code": {}, "config": {}}
        _walk_upstream(manifest, walk)
        walk.links[manifest["stage"], manifest["key"]] = Link(manifest, start)
    # A damaged lineage.json is a damaged file of its artifact too.
    findings = dict.fromkeys(walk.findings)
    return Chain(
        tuple(walk.links.values()),
        tuple(findings),
        walk.files,
        tuple(sorted(walk.other_code)),
    )


def artifact_folder(folder: Path) -> Path:
    """Return the folder of the artifact or export that a folder is, or is a part of.

    Raises:
        InputError: there is none.
    """
    folder = folder.resolve()
    for place in (folder, *folder.parents[:2]):
        if (place / MANIFEST).is_file() or (place / LINEAGE).is_file():
            return place
    what = f"it has no {MANIFEST} and no {LINEAGE}" if folder.is_dir() else "no such folder"
    raise InputError(f"{folder}: {what}; give a folder STAGE/KEY of a store, or an export copied as a whole")


def _store_of(start: Path) -> Store | None:
    """Return the store that an artifact lies in, by its own manifest; None for a copy."""
    manifest = _loaded(start / MANIFEST) or {}
    lies = (start.parent.name, start.name) == (manifest.get("stage"), manifest.get("key"))
    # With a damaged manifest, the shape of a store says it.
    return Store(start.parents[1]) if lies or (start.parents[1] / ".locks").is_dir() else None


def _read_lineage(start: Path, walk: _Walk) -> Manifest | None:
    """Return the verified `lineage.json` of an export; None if it has none, or a damaged one."""
    path = start / LINEAGE
    if not path.is_file():
        return None
    found = read_manifest(path)
    if found is None:
        where = f"{start.parent.name}/{start.name[:SHORT]}"
        walk.damaged(f"{where}/{LINEAGE}", OTHER_BYTES)
        return None
    walk.embedded = found["manifests"]
    return found


def _verify_copied_files(start: Path, copied: Manifest, walk: _Walk) -> None:
    """Verify the files of an export that has no manifest any more."""
    for name, item in copied["outputs"].items():
        # On a hub, the files of the model are at the top.
        places = (start / name, start / name.removeprefix("model/"))
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            # An export may be copied without some of its formats.
            walk.findings.append(Finding("absent", name, "the file of the export is not here"))
        elif file_digest(path) != item["sha256"]:
            walk.damaged(path.relative_to(start).as_posix(), OTHER_BYTES)
        else:
            walk.files += 1
    walk.files += 1


def _verified(folder: Path, name: str, walk: _Walk) -> Manifest | None:
    """Return the manifest of an artifact whose files were verified; what is wrong becomes a finding."""
    check: Check = check_folder(folder)
    if check.manifest is not None:
        walk.files += len(check.manifest["outputs"]) + 1
        return check.manifest
    what = f"{folder.parent.name}/{name[:SHORT]}/{check.damage}"
    path = folder / str(check.damage)
    manifest = _loaded(folder / MANIFEST)
    if check.damage == MANIFEST:
        walk.damaged(what, "was changed after it was written")
        # The rest of a chain is worth verifying too, if the text still says how it goes on.
        return manifest if manifest is not None and _is_usable(manifest) else None
    assert manifest is not None
    if check.damage in manifest["outputs"]:
        walk.damaged(what, OTHER_BYTES if path.exists() else "is missing")
    else:
        walk.damaged(what, "is not one of the recorded files" if path.exists() else "cannot be read")
    return manifest


def _visit(link: Link, walk: _Walk) -> None:
    """Verify what a manifest says of itself and of what it was made from, those first."""
    manifest = link.manifest
    name = f"{manifest['stage']}/{manifest['key'][:SHORT]}"
    if key_of_manifest(manifest) != manifest["key"]:
        walk.damaged(f"{name}/{MANIFEST}", "its settings, inputs, code and upstream do not give its key")
    _walk_upstream(manifest, walk)
    for file, detail, state in _inputs(manifest, _root(manifest, walk)):
        if state is None:
            walk.files += 1
        else:
            walk.findings.append(Finding(state, file, detail))
    walk.other_code |= {label for label, digest in manifest["code"].items() if _code_digest(label) != digest}
    walk.links[link.name] = link


def _visit_also_read(manifest: Mapping[str, Any], walk: _Walk) -> None:
    """Verify what the first artifact read besides its upstream: other seeds, an earlier run's evaluation.

    Only of the first artifact: the evaluation that a gate of an export has read taught the export nothing. It
    is visited before the upstream, so that of two trainings of a stage the run's own is the later link.
    """
    for stage, key in manifest.get("also_read", ()):
        found = None if (stage, key) in walk.links else _find((stage, key), walk)
        if found is not None:
            _visit(found, walk)


def _walk_upstream(manifest: Mapping[str, Any], walk: _Walk) -> None:
    for stage, item in manifest["upstream"].items():
        name: Name = (stage, item["key"])
        found = walk.links.get(name) or _find(name, walk)
        if found is None:
            continue
        if name not in walk.links:
            _visit(found, walk)
        if digest_reads(found.manifest, item["reads"]) != item["digest"]:
            walk.damaged(
                f"{stage}/{item['key'][:SHORT]}",
                f"{manifest['stage']} was made from other files than its manifest records",
            )


def _find(name: Name, walk: _Walk) -> Link | None:
    """Return an artifact of the store, or what a `lineage.json` has of it; None if neither has it."""
    stage, key = name
    copied = walk.embedded.get(stage)
    if copied is not None and copied["key"] != key:
        copied = None
    shown = f"{stage}/{key[:SHORT]}"
    folder: Path | None = None
    if walk.store is not None:
        walk.store.fetch(stage, key)
        folder = walk.store.path(stage, key)
    if folder is None or not folder.is_dir():
        walk.findings.append(Finding("absent", shown, "the artifact is not here"))
        return None if copied is None else Link(copied, None)
    manifest = _verified(folder, key, walk)
    if manifest is None:
        return None if copied is None else Link(copied, folder)
    if copied is not None and is_sealed(manifest) and portable(manifest) != copied:
        walk.damaged(f"{shown}/{MANIFEST}", f"is another one than {LINEAGE} of the export has")
    return Link(manifest, folder)


def _inputs(manifest: Mapping[str, Any], root: Path | None) -> Iterable[tuple[str, str, State | None]]:
    """Yield each input file with what is wrong with it; the state is None for a file that is as recorded."""
    for item in manifest["inputs"].values():
        path = _expanded(item["path"])
        if not path.is_absolute() and root is not None:
            path = root / path
        if not path.is_absolute() or not path.is_file():
            yield item["path"], f"input of {manifest['stage']}: not here", "absent"
        elif file_digest(path) != item["sha256"]:
            yield item["path"], f"input of {manifest['stage']}: {OTHER_BYTES}", "changed"
        else:
            yield item["path"], "", None


def _expanded(text: str) -> Path:
    """Return a recorded path with its environment variables filled in, where they are set."""
    if not has_variables(text):
        return Path(text)
    try:
        return Path(expand_variables(text, KeyError))
    except KeyError:
        return Path(text)


def _root(manifest: Mapping[str, Any], walk: _Walk) -> Path | None:
    """Return the folder that the paths of input files are relative to."""
    if walk.given_root is not None or walk.store is None or not manifest["inputs"]:
        return walk.given_root
    runs = [run for run in read_records(walk.store) if run.keys.get(manifest["stage"]) == manifest["key"]]
    return next((Path(run.root) for run in runs if run.root), walk.store.root.parent)


def _code_digest(label: str) -> str | None:
    path = REPOSITORY / label
    return file_digest(path) if path.is_file() else None


def _loaded(path: Path) -> Manifest | None:
    """Return a manifest as it is, without a check of its seal."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _is_usable(manifest: Manifest) -> bool:
    try:
        key_of_manifest(manifest)
        digest_reads(manifest, ())
        read = manifest["upstream"].values()
        return all(isinstance(item["reads"], list) and item["digest"] for item in read)
    except (KeyError, TypeError, AttributeError, ValueError):
        return False
