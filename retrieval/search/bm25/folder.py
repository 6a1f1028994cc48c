"""A BM25 index as a folder: arrays that are mapped into memory, and one JSON file that says what they are.

    bm25.json        format, tokenizer, sizes, type and length of every array, digest of all of it
    <name>.npy       the arrays of `BM25Index` and of its vocabulary

It is written under a temporary name, forced to disk and renamed, so a reader sees all of it or none. The same
documents give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jora_core.base.atomic_files import fsync, fsync_tree
from jora_core.base.digests import file_digest
from jora_core.base.errors import InputError
from retrieval.search.bm25.vocabulary import WORD_ARRAYS, Vocabulary, word_arrays
from retrieval.text.normalize import Tokenizer

if TYPE_CHECKING:
    from retrieval.search.bm25.index import BM25Index

FORMAT = "jora-bm25"
VERSION = 1
ABOUT = "bm25.json"
POSTING_ARRAYS = ("docs", "frequencies", "firsts", "weights")
TERM_ARRAYS = ("bounds", "fence_starts", "shifts", "bits")
ARRAYS = ("indptr", *POSTING_ARRAYS, *TERM_ARRAYS, "fences", "signatures", "lengths", *WORD_ARRAYS)


class Draft:
    """A folder in the making, beside the place where it will stand."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            InputError: the place cannot be written, or something else than an index lies there.
        """
        self.folder = folder
        if folder.exists() and not (folder / ABOUT).is_file() and not _is_empty(folder):
            raise InputError(f"{folder}: holds something else than a BM25 index; choose another folder")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            made = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:12]}.tmp"
            made.mkdir()
        except OSError as error:
            raise _write_error(folder, error) from error
        self._made: Path | None = made
        self._spilled = 0
        self._mapped: list[np.memmap] = []

    def allocate(self, name: str, dtype: np.dtype, size: int) -> np.ndarray:
        """An array of the index, to be filled."""
        assert self._made is not None
        try:
            path = self._made / f"{name}.npy"
            if size == 0:  # nothing to map
                np.save(path, np.zeros(0, dtype=dtype))
                return np.zeros(0, dtype=dtype)
            mapped = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(size,))
        except OSError as error:
            raise _write_error(self.folder, error) from error
        self._mapped.append(mapped)
        return np.asarray(mapped)

    def spill(self, array: np.ndarray) -> np.ndarray:
        """The array as a file that is gone when the index is published."""
        assert self._made is not None
        path = self._made / f"batch-{self._spilled}.npy"
        self._spilled += 1
        try:
            np.save(path, array)
            return np.load(path, mmap_mode="r")
        except OSError as error:
            raise _write_error(self.folder, error) from error

    def publish(self, words: Sequence[str], lengths: np.ndarray, tokenizer: Tokenizer) -> Path:
        """Completes the folder and gives it its name, in place of an older index; returns it.

        Args:
            words: the terms in the order of their ids.
            lengths: int32[D].

        Raises:
            InputError: it cannot be written.
        """
        assert self._made is not None
        try:
            for path in self._made.glob("batch-*.npy"):
                path.unlink()
            for mapped in self._mapped:
                mapped.flush()
            self._mapped.clear()
            for name, array in {**word_arrays(words), "lengths": lengths}.items():
                np.save(self._made / f"{name}.npy", array)
            about = _about(self._made, tokenizer)
            (self._made / ABOUT).write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")
            fsync_tree(self._made)
            _put_in_place(self._made, self.folder)
        except OSError as error:
            raise _write_error(self.folder, error) from error
        self._made = None
        return self.folder

    def discard(self) -> None:
        """Removes what was not published."""
        if self._made is not None:
            shutil.rmtree(self._made, ignore_errors=True)
            self._made = None


def save(index: BM25Index, folder: Path) -> None:
    """Writes the index as a folder, in place of an older one.

    Raises:
        InputError: the folder cannot be written, or something else than an index lies there.
    """
    draft = Draft(folder)
    try:
        for name in ("indptr", *POSTING_ARRAYS, *TERM_ARRAYS, "fences", "signatures"):
            array = getattr(index, name)
            draft.allocate(name, array.dtype, len(array))[:] = array
        draft.publish(list(index.vocabulary), index.lengths, index.tokenizer)
    finally:
        draft.discard()


def load(folder: Path, verify: bool = False) -> BM25Index:
    """Opens a saved index without reading it: the arrays are mapped into memory.

    Args:
        verify: also read everything and compare it with the digest.

    Raises:
        InputError: the folder is missing, is no such index, or is damaged.
    """
    from retrieval.search.bm25.index import BM25Index

    about = read_about(folder)
    if verify:
        found = _digest(folder, about)
        if found != about["digest"]:
            raise _damaged(folder, f"the digest of its arrays is {found[:12]}…, not {about['digest'][:12]}…")
    arrays = {name: _open(folder, name, about["arrays"][name]) for name in ARRAYS}
    vocabulary = Vocabulary(*(arrays.pop(name) for name in WORD_ARRAYS))
    tokenizer = Tokenizer(about["tokenizer"]["stemmer"])
    if about["tokenizer"] != tokenizer.settings():
        raise InputError(f"{folder}: index made with another tokenizer, {about['tokenizer']}; build it anew")
    return BM25Index(vocabulary, n_documents=about["n_documents"], tokenizer=tokenizer, **arrays)


def read_about(folder: Path) -> dict[str, Any]:
    """What `bm25.json` says of a saved index: sizes, tokenizer, digest.

    Raises:
        InputError: the folder is missing, is no such index, is of another version, or is damaged.
    """
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{folder}: no BM25 index is there ({ABOUT} is missing); expected a folder that was saved by one"
        ) from error
    except (OSError, ValueError) as error:
        raise _damaged(folder, f"{ABOUT} cannot be read ({_reason(error)})") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise InputError(f"{folder}: {ABOUT} is not of a BM25 index (no format {FORMAT!r}); check the path")
    if about.get("version") != VERSION:
        raise InputError(
            f"{folder}: index of version {about.get('version')}, this code reads {VERSION}; build it anew"
        )
    if problem := _problem(about):
        raise _damaged(folder, f"{ABOUT}: {problem}")
    return about


def _problem(about: Mapping[str, Any]) -> str | None:
    """What is wrong with the JSON, if anything."""
    try:
        sizes = {name: about["arrays"][name]["size"] for name in ARRAYS}
        dtypes = {name: np.dtype(about["arrays"][name]["dtype"]) for name in ARRAYS}
        terms, documents, postings = about["n_terms"], about["n_documents"], about["n_postings"]
        Tokenizer(about["tokenizer"]["stemmer"])
        str(about["digest"])[:12]
    except (KeyError, TypeError, ValueError) as error:
        return f"{_reason(error)}"
    want = dict.fromkeys(POSTING_ARRAYS, postings) | {
        "indptr": terms + 1,
        "lengths": documents,
        "signatures": documents,
    }
    want |= dict.fromkeys((*TERM_ARRAYS, "word_ends", "hashes", "by_hash"), terms)
    for name in ARRAYS:
        if sizes[name] != want.get(name, sizes[name]):
            return f"array {name} has {sizes[name]} values, expected {want[name]}"
        if dtypes[name].kind not in "iuf":
            return f"array {name} has values of type {dtypes[name]}"
    return None


def _open(folder: Path, name: str, about: Mapping[str, Any]) -> np.ndarray:
    path = folder / f"{name}.npy"
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise _damaged(folder, f"{path.name} cannot be read ({_reason(error)})") from error
    if mapped.dtype != np.dtype(about["dtype"]) or mapped.shape != (about["size"],):
        have, want = f"{mapped.dtype.str}{list(mapped.shape)}", f"{about['dtype']}[{about['size']}]"
        raise _damaged(folder, f"{path.name} holds {have}, expected {want}")
    # A plain view: memmap's own class makes every slice slower.
    return np.asarray(mapped)


def _about(folder: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    about: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "tokenizer": tokenizer.settings(),
        "arrays": {},
    }
    for name in ARRAYS:
        array = np.load(folder / f"{name}.npy", mmap_mode="r")
        about["arrays"][name] = {"dtype": array.dtype.str, "size": len(array)}
    sizes = {name: array["size"] for name, array in about["arrays"].items()}
    about |= {"n_documents": sizes["lengths"], "n_terms": sizes["bounds"], "n_postings": sizes["docs"]}
    about["digest"] = _digest(folder, about)
    return about


def _digest(folder: Path, about: Mapping[str, Any]) -> str:
    """SHA-256 of the arrays' files and of everything else that the JSON says."""
    rest = {key: value for key, value in about.items() if key != "digest"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name in ARRAYS:
        try:
            digest.update(bytes.fromhex(file_digest(folder / f"{name}.npy")))
        except OSError as error:
            raise _damaged(folder, f"{name}.npy cannot be read ({_reason(error)})") from error
    return digest.hexdigest()


def _put_in_place(made: Path, folder: Path) -> None:
    if folder.exists():
        # A folder with content cannot be renamed over; the older index is put aside for that moment.
        old = made.with_suffix(".old")
        folder.rename(old)
        try:
            made.rename(folder)
        except OSError:
            old.rename(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    else:
        made.rename(folder)
    fsync(folder.parent)


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}"[:200]


def _damaged(folder: Path, what: str) -> InputError:
    return InputError(f"{folder}: the BM25 index is damaged: {what}; remove the folder and build it anew")


def _write_error(folder: Path, error: OSError) -> InputError:
    return InputError(
        f"{folder}: cannot be written ({_reason(error)}); check free space and permissions of {folder.parent}"
    )
