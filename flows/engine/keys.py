"""The key of an artifact: a digest of everything that decides what is in it.

key = SHA-256 of the canonical JSON of stage name and version, the settings that the stage reads, the
content of its input files, the content of its code, and the *keys* of the stages that it reads from.

Using the upstream keys, not the digests of their outputs, makes every key known before anything has run, so
`jora plan` can say for each stage what a run would do. It is as strong as long as a stage that runs again
with the same key writes the same bytes. That is checked, not believed: a manifest also records the digest
of each upstream file that was read, and an artifact whose upstream files are no longer those is not current
(:mod:`flows.engine.plan`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from flows.configuration.schema import PipelineConfig
from flows.engine.stage import Registry, Upstream, stages_of
from jora_core.base.digests import file_digests, json_digest
from jora_core.base.errors import InputError


@dataclass(frozen=True)
class Identity:
    """Everything that went into one stage's key; `inputs` and `code` map names to SHA-256.

    `paths` has the path of each input for messages, relative to the configuration's root where it is below
    it. It is no part of the key.
    """

    stage: str
    version: int
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    paths: Mapping[str, str]
    upstream: Mapping[str, str]
    reads: tuple[Upstream, ...]
    code: Mapping[str, str]

    @property
    def key(self) -> str:
        """SHA-256 (hexadecimal) of the canonical JSON of the parts."""
        return json_digest(
            {
                "stage": self.stage,
                "version": self.version,
                "config": self.config,
                "inputs": self.inputs,
                "upstream": self.upstream,
                "code": self.code,
            }
        )


def digest_reads(outputs: Mapping[str, Mapping[str, Any]], reads: Sequence[str]) -> str:
    """Digest of those of an artifact's `outputs` (path to {sha256, size}) that match one of the patterns
    `reads`.
    """
    return json_digest(
        [
            [path, outputs[path]["sha256"]]
            # The list has the paths, too: two files that exchange their contents are a change.
            for path in sorted(outputs)
            if any(fnmatchcase(path, pattern) for pattern in reads)
        ]
    )


def identify(config: PipelineConfig, registry: Registry, until: str | None = None) -> dict[str, Identity]:
    """Compute the identity of every stage of a configuration, in the order in which they run.

    Args:
        config: whose stages, settings and inputs are meant.
        registry: name to stage.
        until: the last stage that is needed; all if None. Each input file is digested, which takes time.

    Returns:
        Stage name to identity.

    Raises:
        InputError: an input is missing or cannot be read.
    """
    found: dict[str, Identity] = {}
    hashed: dict[Path, str] = {}  # several stages share most of their code
    root = Path(config.root)
    for stage in stages_of(config, registry):
        reads = stage.upstream(config)
        sources = stage.sources()
        fresh = [path for path in sources.values() if path not in hashed]
        hashed.update(zip(fresh, file_digests(fresh), strict=True))
        inputs = stage.inputs(config)
        found[stage.name] = Identity(
            stage=stage.name,
            version=stage.version,
            config=stage.settings(config),
            inputs=digest_inputs(inputs),
            paths={name: _shown(path, root) for name, path in inputs.items()},
            # `stages_of` is in the order of the run, so what a stage reads has been identified before it.
            upstream={item.stage: found[item.stage].key for item in reads},
            reads=reads,
            code={label: hashed[path] for label, path in sources.items()},
        )
        # After, not before: the stage `until` itself is wanted.
        if stage.name == until:
            break
    return found


def digest_inputs(inputs: Mapping[str, Path]) -> dict[str, str]:
    """SHA-256 of each input file's bytes, by name.

    Raises:
        InputError: a file is missing or cannot be read.
    """
    for name, path in inputs.items():
        if not path.is_file():  # a pipe or a device would be read for ever
            what = "not a file" if path.exists() else "no such file"
            raise InputError(f"{name}: {what}: {path}")
    try:
        return dict(zip(inputs, file_digests(list(inputs.values())), strict=True))
    except OSError as error:
        raise InputError(
            f"cannot read {error.filename}: {(error.strerror or 'unreadable').lower()}"
        ) from None


def _shown(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
