"""`lineage.json` of an export: the manifests of all stages before it, so that a copy can say its origin.

The file has a seal as a manifest has. It holds no time, so an export that is made again has the same file; no
metrics; and no absolute path, which would be of the machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.engine.artifact_store import Manifest, render_manifest
from flows.engine.keys import digest_reads
from flows.engine.stage import Upstream
from jora_core.base.secrets import mask

LINEAGE = "lineage.json"
_FORMAT = 1
_KEPT = ("stage", "key", "version", "project", "config", "inputs", "upstream", "parts", "outputs", "code")


def portable(manifest: Mapping[str, Any]) -> Manifest:
    """Return what `lineage.json` keeps of a manifest."""
    inputs = {
        name: {**item, "path": name if Path(item["path"]).is_absolute() else item["path"]}
        for name, item in manifest["inputs"].items()
    }
    return {name: manifest[name] for name in _KEPT if name in manifest} | {"inputs": inputs}


def render_lineage(
    stage: str,
    key: str,
    files: Mapping[str, str],
    upstream: Sequence[Upstream],
    manifests: Mapping[str, Mapping[str, Any]],
) -> bytes:
    """Return the text of `lineage.json`.

    Args:
        stage: name of the stage that writes it.
        key: key of its artifact.
        files: path in the artifact to SHA-256.
        upstream: the stages that the artifact is made from, with what is read of each.
        manifests: name of each of them to its manifest.
    """
    found = {
        "format": _FORMAT,
        "stage": stage,
        "key": key,
        "outputs": {name: {"sha256": digest} for name, digest in files.items()},
        "upstream": {
            item.stage: {
                "key": manifests[item.stage]["key"],
                "digest": digest_reads(manifests[item.stage], item.reads),
                "reads": list(item.reads),
            }
            for item in upstream
        },
        "manifests": {name: portable(manifest) for name, manifest in manifests.items()},
    }
    return render_manifest(json.loads(mask(json.dumps(found, ensure_ascii=False))))
