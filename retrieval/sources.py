"""From what the config calls a source to files: expansion, stable names, digests."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval.config import ContextConfig
from retrieval.errors import InputError
from retrieval.remote import is_url, local_copy
from retrieval.task_config import QaTask, TablesTask, ThreadsTask
from retrieval.tokens import tokenizer_file

_GLOB = re.compile(r"[*?\[]")
_VARIABLE = re.compile(r"\$(\w+|\{\w+\})")
IRC_SUFFIX = ".ascii.txt"
IRC_ANNOTATION_SUFFIX = ".annotation.txt"
QUESTION_SUFFIXES = (
    *(f"{kind}{packed}" for kind in (".jsonl", ".ndjson", ".json") for packed in ("", ".gz", ".zst")),
    ".parquet",
)
_JSON_SUFFIXES = tuple(suffix for suffix in QUESTION_SUFFIXES if suffix != ".parquet")
_UTTERANCES = tuple(f"utterances.jsonl{packed}" for packed in ("", ".gz", ".zst"))
THREAD_SUFFIXES = {
    "4chan": (*_JSON_SUFFIXES, ".tar", ".tar.gz", ".tgz", ".tar.zst"),
    "convokit": _UTTERANCES,
    "discord": _JSON_SUFFIXES,
    "irc": (IRC_SUFFIX,),
    "mastodon": _JSON_SUFFIXES,
}
#: Fields of a first object that only one format has.
_TELLING_FIELDS = {
    "posts": "4chan",
    "messages": "discord",
    "channel_id": "discord",
    "message_reference": "discord",
    "in_reply_to_id": "mastodon",
    "ancestors": "mastodon",
    "descendants": "mastodon",
    "conversation_id": "convokit",
    "reply-to": "convokit",
    "root": "convokit",
}
DOCUMENT_SUFFIXES = (*QUESTION_SUFFIXES, ".txt", ".md", ".pdf")


@dataclass(frozen=True)
class SourceFile:
    """A file to read; `name` is its path below the source and stays the same when the corpus moves."""

    path: Path
    name: str


def _tables_copy(url: str, field: str) -> str:
    """The local copy of a tables folder, or of the folder around one of its .tsv files."""
    kinds = (".csv", ".tsv")
    if not url.endswith(".tsv"):
        return expand_path(url, field, kinds)
    root, folder, name = url.rsplit("/", 2)
    return str(Path(expand_path(root, field, kinds)) / folder / name)


def unpacked_name(path: Path) -> str:
    """A file's name without the suffix of its packing."""
    return path.name.removesuffix(".gz").removesuffix(".zst")


def document_files(task: QaTask) -> list[SourceFile]:
    """The files of a question task's documents.

    Raises:
        InputError: nothing is there.
    """
    return find_files(task.source, DOCUMENT_SUFFIXES, "qa.source")


def question_files(task: QaTask) -> list[SourceFile]:
    """The files of its questions: those of the documents where none are named, as in SQuAD and HotpotQA.

    Raises:
        InputError: nothing is there.
    """
    if task.questions is None:
        return document_files(task)
    return find_files(task.questions, QUESTION_SUFFIXES, "qa.questions")


def expand_path(text: str, field: str, suffixes: Sequence[str] = ()) -> str:
    """`~` and `$VARIABLES` filled in; of a URL, the local copy (of a folder, what ends in `suffixes`).

    Raises:
        InputError: the text is empty, names a variable that is not set, or a URL that cannot be read.
    """
    expanded = os.path.expandvars(text.strip())
    left = _VARIABLE.search(expanded)
    if left:
        name = left[1].strip("{}")
        raise InputError(
            f"{field}: environment variable {name} in {text!r} is not set; set it or write the path"
        )
    if not expanded:
        raise InputError(f"{field}: the path is empty; give a file, folder or glob")
    return local_copy(expanded, field, suffixes) if is_url(expanded) else str(Path(expanded).expanduser())


def find_files(source: str, suffixes: Sequence[str], field: str) -> list[SourceFile]:
    """The files of a source (file, folder, or glob; also by URL), sorted by name.

    A folder is searched to any depth for `suffixes`; a file named outright may end in anything.
    Raises:
        InputError: nothing is there.
    """
    beside = (IRC_ANNOTATION_SUFFIX,) if IRC_SUFFIX in suffixes else ()
    text = expand_path(source, field, (*suffixes, *beside))
    path = Path(text)
    if path.is_file():
        return [SourceFile(path, path.name)]
    if path.is_dir():
        root, found = path, (p for p in path.rglob("*") if p.name.endswith(tuple(suffixes)))
    elif _GLOB.search(text):
        root = _fixed_root(path)
        found = root.glob(path.relative_to(root).as_posix())
    else:
        raise InputError(f"{field}: {text} does not exist; expected a file, folder or glob")
    files = sorted(
        (SourceFile(p, p.relative_to(root).as_posix()) for p in found if p.is_file()), key=lambda f: f.name
    )
    if not files:
        kinds = ", ".join(suffixes)
        raise InputError(f"{field}: no file found in {text}; expected files ending in {kinds}")
    return files


def _fixed_root(pattern: Path) -> Path:
    parts: list[str] = []
    for part in pattern.parts[:-1]:
        if _GLOB.search(part):
            break
        parts.append(part)
    return Path(*parts) if parts else Path()


def table_files(task: TablesTask) -> list[tuple[str, Path, Path]]:
    """(split, root, tsv) of a table task; split is "" where the seed decides.

    Raises:
        InputError: the folder or its .tsv is missing.
    """
    wanted = [("train" if task.test_source else "", task.source, "tables.source")]
    if task.test_source:
        wanted.append(("test", task.test_source, "tables.test_source"))
    out = []
    for split, source, field in wanted:
        path = Path(_tables_copy(source, field) if is_url(source) else expand_path(source, field))
        tsv = path / "data" / "training.tsv" if path.is_dir() else path
        if not tsv.is_file():
            raise InputError(f"{field}: {tsv} does not exist; expected WikiTableQuestions' layout or a .tsv")
        out.append((split, tsv.resolve().parent.parent if not path.is_dir() else path, tsv))
    return out


def thread_format(task: ThreadsTask) -> str:
    """The format of a thread task: as configured, or told by the names of its files or the first one's
    fields.

    Raises:
        InputError: a source is missing, or the format cannot be told.
    """
    if task.format != "auto":
        return task.format
    from retrieval.readers.rows import field_names

    suffixes = tuple({suffix for kinds in THREAD_SUFFIXES.values() for suffix in kinds})
    files = find_files(task.source, suffixes, "threads.source")
    for kind in ("irc", "convokit"):
        if any(file.name.endswith(THREAD_SUFFIXES[kind]) for file in files):
            return kind
    if files[0].name.endswith((".tar", ".tgz", ".tar.gz", ".tar.zst")):
        return "4chan"
    try:
        names = field_names(files[0], tuple(_TELLING_FIELDS))
    except InputError:
        return "4chan"  # its reader says what is wrong with the file
    found = next((_TELLING_FIELDS[name] for name in names if name in _TELLING_FIELDS), None)
    if found is None and names:
        raise InputError(
            f"{files[0].path}: the format cannot be told from the fields {', '.join(names)[:80]}; set "
            f"threads.format to one of {', '.join(THREAD_SUFFIXES)}"
        )
    return found or "4chan"


def thread_files(task: ThreadsTask) -> list[tuple[str, SourceFile]]:
    """(split, file) of a thread task; split is "" where folder names or the seed decide."""
    suffixes = THREAD_SUFFIXES[thread_format(task)]
    split = "train" if task.test_source else ""
    files = [(split, f) for f in find_files(task.source, suffixes, "threads.source")]
    if task.test_source:
        files += [("test", f) for f in find_files(task.test_source, suffixes, "threads.test_source")]
    return files


def input_files(config: ContextConfig) -> Iterator[tuple[str, Path]]:
    """Every file that a build reads, with a stable label; what a stage key should digest.

    Raises:
        InputError: a source is missing.
    """
    if config.tables:
        for split, root, tsv in table_files(config.tables):
            role = f"tables{'.' + split if split else ''}"
            yield f"{role}/{tsv.name}", tsv
            for path in sorted((root / "csv").rglob("*.csv")):
                yield f"{role}/{path.relative_to(root).as_posix()}", path
    if config.threads:
        for split, file in thread_files(config.threads):
            role = f"threads{'.' + split if split else ''}"
            yield f"{role}/{file.name}", file.path
            if file.name.endswith(IRC_SUFFIX):
                note = annotation_path(file.path)
                if note.is_file():
                    yield f"{role}/{annotation_path(Path(file.name)).as_posix()}", note
    if config.qa:
        for file in document_files(config.qa):
            yield f"qa.documents/{file.name}", file.path
        for file in question_files(config.qa) if config.qa.questions is not None else []:
            yield f"qa.questions/{file.name}", file.path
    if config.counts_tokens:
        file = tokenizer_file(tokenizer_folder(config))
        yield f"tokenizer/{file.name}", file
    for field, model in models(config).items():
        folder = model_folder(model, field)
        if folder is not None:
            for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                yield f"{field}/{path.relative_to(folder).as_posix()}", path


def annotation_path(log: Path) -> Path:
    """Where the annotations of an IRC log lie."""
    return log.with_name(log.name.removesuffix(IRC_SUFFIX) + IRC_ANNOTATION_SUFFIX)


def models(config: ContextConfig) -> dict[str, str]:
    """The configured sentence-transformers models by field."""
    found = {"embedder": config.embedder, "reranker": config.reranker}
    return {field: model for field, model in found.items() if model}


def model_folder(model: str, field: str) -> Path | None:
    """The folder of a sentence-transformers model, or None where it is a public name.

    Raises:
        InputError: the text is a path by its form, and no folder is there.
    """
    path = Path(model if is_url(model) else expand_path(model, field))
    if path.is_dir():
        return path
    looks_like_path = path.is_absolute() or model.startswith((".", "~", "$")) or model.count("/") > 1
    if looks_like_path:
        raise InputError(
            f"{field}: folder {path} does not exist; give a sentence-transformers folder or name"
        )
    return None


def open_model(
    field: str, model: str, marker: str, options: str, make: Callable[[str], Any]
) -> tuple[Any, Path | None]:
    """What `make` loads from a model's folder or by its public name, and the folder.

    Args:
        marker: file that tells the folder of such a model.
        options: what to do about a model that cannot be used.

    Raises:
        InputError: the folder is missing or is none of such a model, or the model cannot be loaded.
    """
    folder = model_folder(model, field)
    if folder is not None and not (folder / marker).is_file():
        raise InputError(f"{field}: {folder} holds no {marker}, so it is no such model; {options}")
    try:
        return make(str(folder) if folder else model), folder
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise InputError(f"{field}: {model} cannot be loaded ({reason}); {options}") from error


def tokenizer_folder(config: ContextConfig) -> Path:
    """The folder of the tokenizer that counts.

    Raises:
        InputError: none is given.
    """
    if not config.tokenizer:
        raise InputError("context.tokenizer is empty, but tokens are to be counted; give the model's folder")
    return Path(expand_path(config.tokenizer, "context.tokenizer"))


def input_digests(config: ContextConfig) -> dict[str, str]:
    """SHA-256 of every input file by label; a model given by public name appears under that name."""
    digests = {}
    for label, path in input_files(config):
        digests[label] = file_digest(path)
    for field, model in models(config).items():
        if model_folder(model, field) is None:
            digests[field] = model
    return digests


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes as hex.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); check the file and its permissions"
        ) from error
