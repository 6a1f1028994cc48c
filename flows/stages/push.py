"""The stage `push`, which uploads the export to a repository of the Hugging Face hub, in one commit.

A configuration has it only with `export.push_to`. The merged model comes to the top of the repository, where
libraries look for it, and the card's paths and commands follow. The token is read from the environment alone.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.engine.code_files import stage_sources
from flows.engine.errors import StageFailed
from flows.engine.lineage_file import LINEAGE
from flows.engine.stage import Stage, StageContext, Upstream
from jora_core.base.atomic_files import write_json
from jora_core.base.errors import InputError

NAME = "push"
# By name: an import of the export's stage would make its code, and what that imports, a part of this key.
EXPORT = "export"
RESULT = "push.json"
TOKEN = "HF_TOKEN"
MODEL_FOLDER, FOLDERS, CARD = "model", ("adapter", "gguf"), "README.md"
# What of an export is uploaded. Its manifest is of the store, and names paths of this machine; the lineage
# names none.
_READS = (*(f"{name}/*" for name in (MODEL_FOLDER, *FOLDERS)), CARD, LINEAGE)

logger = logging.getLogger("jora.push")


@dataclass(frozen=True)
class Upload:
    """One file of an upload.

    Attributes:
        name: path in the repository.
        file: the file of the export.
        content: what is uploaded in place of the file's content; None for the file as it is.
    """

    name: str
    file: Path
    content: bytes | None = None

    @property
    def size(self) -> int:
        """Number of bytes."""
        return self.file.stat().st_size if self.content is None else len(self.content)

    def __str__(self) -> str:
        return f"{self.size / 1e6:12,.3f} MB  {self.name}"


def uploads(folder: Path, repository: str) -> list[Upload]:
    """Return what the push of an export would upload, by name.

    Args:
        folder: artifact of the stage `export`.
        repository: OWNER/NAME on the hub.
    """
    found = []
    for top in (MODEL_FOLDER, *FOLDERS):
        for file in sorted((folder / top).rglob("*")):
            if file.is_file():
                name = file.relative_to(folder / top if top == MODEL_FOLDER else folder)
                found.append(Upload(name.as_posix(), file))
    found.append(Upload(LINEAGE, folder / LINEAGE))
    card = (folder / CARD).read_text(encoding="utf-8")
    for ours, theirs in (
        ('from_pretrained("model")', f'from_pretrained("{repository}")'),
        ("vllm serve model ", f"vllm serve {repository} "),
        (f"| `{MODEL_FOLDER}/", "| `"),
    ):
        card = card.replace(ours, theirs)
    found.append(Upload(CARD, folder / CARD, card.encode()))
    return sorted(found, key=lambda each: each.name)


def push(found: list[Upload], repository: str) -> dict[str, Any]:
    """Upload files in one commit. A repository that does not exist is made, and is private.

    Args:
        found: the files.
        repository: OWNER/NAME on the hub.

    Returns:
        Repository, commit and address.

    Raises:
        InputError: no token, or one without the right to write there.
        StageFailed: the hub cannot be reached or refuses a file. Another attempt may succeed.
    """
    token = os.environ.get(TOKEN)
    if not token:
        raise InputError(f"export.push_to: no token; set {TOKEN} to one that may write to {repository}")
    # Here, because half a second of imports is for those who upload.
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    # Given, because the library reads the variable once, at its import.
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)
    files = [
        CommitOperationAdd(each.name, each.file if each.content is None else each.content) for each in found
    ]
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        commit = api.create_commit(repository, files, commit_message="Export of JORA-RAFT")
    except Exception as error:  # network, rights and names have errors of several libraries
        reason = " ".join(f"{type(error).__name__}: {error}".split()).replace(token, "***")
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if status in (401, 403):
            raise InputError(
                f"export.push_to: {TOKEN} has no right to write to {repository} ({reason:.300})"
            ) from None
        raise StageFailed(f"{repository}: the upload failed ({reason:.300})") from None
    return {"repository": repository, "commit": commit.oid, "url": commit.commit_url}


def _run(context: StageContext) -> dict[str, Any]:
    repository = context.config.export.push_to
    assert repository is not None
    found = uploads(context.upstream[EXPORT], repository)
    size = sum(each.size for each in found)
    logger.info("%s: %d files, %.1f MB to %s", NAME, len(found), size / 1e6, repository)
    for each in found:
        logger.info("%s", each)
    result = {**push(found, repository), "files": len(found), "bytes": size}
    write_json(context.output_dir / RESULT, result)
    return result


PUSH = Stage(
    name=NAME,
    description="Upload the export to the Hugging Face hub.",
    version=1,
    settings=lambda config: {"export": {"push_to": config.export.push_to}},
    inputs=lambda config: {},
    upstream=lambda config: (Upstream(EXPORT, _READS),),
    sources=lambda: stage_sources(__file__),
    run=_run,
    applies=lambda config: config.export.push_to is not None,
)
