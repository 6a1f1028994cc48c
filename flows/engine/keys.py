"""The key of an artifact, which is a digest of everything that decides the content of the artifact.

A key is the SHA-256 of canonical JSON. The JSON holds the name and version of the stage, the settings that
the stage reads, the digests of its input files and of its code, and the *keys* of its upstream stages. Where
a stage reads only a part of an upstream artifact, such as the records of some tasks, its key has the keys of
these parts instead. The key of a part covers the settings, inputs and code of that part alone.

With the keys of the upstream stages, not the digests of their outputs, every key is known before a stage has
run, so `jora plan` can say for each stage what a run would do. This is safe only if a stage that runs again
with the same key writes the same bytes. Therefore a manifest also records a digest of the upstream files that
were read. An artifact whose upstream files have changed is not current (:mod:`flows.engine.plan`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from flows.configuration.schema import PipelineConfig
from flows.engine.stage import Registry, Upstream, stages_of
from jora_core.base.digests import file_digests, json_digest
from jora_core.base.errors import InputError
from jora_core.base.secrets import mask


@dataclass(frozen=True)
class Identity:
    """The parts of one stage's key, and the path of each input for messages.

    Attributes:
        stage: name of the stage.
        version: version of the stage.
        config: the settings that the stage reads.
        inputs: name of an input file to its SHA-256.
        paths: name of an input file to its path, relative to the configuration's root for a file below the
            root; not part of the key.
        upstream: name of an upstream stage to its key, which names its artifact. In the key only where the
            whole artifact is read.
        reads: the upstream artifacts with the files that the stage reads; not part of the key.
        code: repository path of a source file to its SHA-256.
        upstream_parts: name of an upstream stage to the keys of the parts that are read, by part.
        parts: name of a part of this stage's output to its key; not part of the key.
        project: name of the project; not part of the key.
    """

    stage: str
    version: int
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    paths: Mapping[str, str]
    upstream: Mapping[str, str]
    reads: tuple[Upstream, ...]
    code: Mapping[str, str]
    upstream_parts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    project: str = ""

    @property
    def key(self) -> str:
        """The stage's key, a hexadecimal SHA-256 of the canonical JSON of its parts."""
        return _key(
            self.stage,
            self.version,
            config=self.config,
            inputs=self.inputs,
            upstream={**self.upstream, **self.upstream_parts},
            code=self.code,
        )


def _key(stage: str, version: int, **parts: Mapping[str, Any]) -> str:
    return json_digest({"stage": stage, "version": version, **parts})


def key_of_manifest(manifest: Mapping[str, Any]) -> str:
    """Return the key that the recorded parts of a manifest give, which must be the manifest's own `key`."""
    return _key(
        manifest["stage"],
        manifest["version"],
        config=manifest["config"],
        inputs={name: item["sha256"] for name, item in manifest["inputs"].items()},
        upstream={name: item.get("parts") or item["key"] for name, item in manifest["upstream"].items()},
        code=manifest["code"],
    )


def digest_reads(manifest: Mapping[str, Any], reads: Sequence[str]) -> str:
    """Return one digest for the files of an artifact that a stage reads, or for the parts of files it reads.

    Args:
        manifest: manifest of the artifact, with its `outputs` and the digests of its `parts`.
        reads: glob patterns of the files and parts to include.
    """
    contents = {name: item["sha256"] for name, item in manifest["outputs"].items()}
    contents |= manifest.get("parts", {})
    return json_digest(
        [
            [name, contents[name]]
            # The list has the names, too: two files that exchange their contents are a change.
            for name in sorted(contents)
            if any(fnmatchcase(name, pattern) for pattern in reads)
        ]
    )


def identify(config: PipelineConfig, registry: Registry, until: str | None = None) -> dict[str, Identity]:
    """Compute the parts of the key of every stage of a configuration, in the order of the run.

    Args:
        config: configuration with the stages, settings and inputs.
        registry: name to stage.
        until: name of the last stage to identify; None identifies all stages. Each input file is digested,
            which takes time.

    Returns:
        Stage name to identity.

    Raises:
        InputError: an input is missing or cannot be read.
    """
    found: dict[str, Identity] = {}
    hashed: dict[Path, str] = {}  # several stages share most of their code
    root = Path(config.root)

    def code_of(sources: Mapping[str, Path]) -> dict[str, str]:
        fresh = [path for path in sources.values() if path not in hashed]
        hashed.update(zip(fresh, file_digests(fresh), strict=True))
        return {label: hashed[path] for label, path in sources.items()}

    for stage in stages_of(config, registry):
        reads = stage.upstream(config)
        inputs = stage.inputs(config)
        whole = Identity(
            stage=stage.name,
            version=stage.version,
            config=stage.settings(config),
            inputs=digest_inputs(inputs),
            paths={name: _shown(path, root) for name, path in inputs.items()},
            # `stages_of` is in the order of the run, so the upstream stages are identified already.
            upstream={item.stage: found[item.stage].key for item in reads},
            reads=reads,
            code=code_of(stage.sources()),
            upstream_parts={
                item.stage: {part: found[item.stage].parts[part] for part in item.parts}
                for item in reads
                if item.parts
            },
            project=config.project,
        )
        parts = {
            name: replace(
                whole,
                config={"part": name, **part.settings},
                inputs={label: whole.inputs[label] for label in part.inputs},
                code=code_of(part.sources),
                upstream={other: whole.upstream[other] for other in part.upstream},
                upstream_parts={
                    other: parts for other, parts in whole.upstream_parts.items() if other in part.upstream
                },
            ).key
            for name, part in stage.parts(config).items()
        }
        found[stage.name] = replace(whole, parts=parts)
        # After the entry is added: the result includes the stage `until`.
        if stage.name == until:
            break
    return found


def digest_inputs(inputs: Mapping[str, Path]) -> dict[str, str]:
    """Return the SHA-256 of each input file, by the name of the input.

    Raises:
        InputError: a file is missing or cannot be read.
    """
    for name, path in inputs.items():
        # Linux allows any bytes in a name, which no key and no manifest can hold.
        if not str(path).isprintable() and _has_other_bytes(str(path)):
            raise InputError(f"{str(path)!a}: the file's name is not UTF-8 text; rename the file")
        if not path.is_file():  # a pipe or a device would be read for ever
            what = "not a file" if path.exists() else "no such file"
            raise InputError(f"{name}: {what}: {path}")
    try:
        return dict(zip(inputs, file_digests(list(inputs.values())), strict=True))
    except OSError as error:
        raise InputError(
            f"cannot read {error.filename}: {(error.strerror or 'unreadable').lower()}"
        ) from None


def _has_other_bytes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _shown(path: Path, root: Path) -> str:
    text = str(path)
    shown = mask(text)
    # Texts, because `Path.relative_to` takes a fifth of the time of a plan with many files.
    inside = f"{root}{os.sep}"
    # Not relative to the root if a part of it comes from the environment: that part could remain.
    return text.removeprefix(inside).replace(os.sep, "/") if shown == text else shown
