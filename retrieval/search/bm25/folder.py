"""A BM25 index on disk: arrays that are mapped into memory, and one JSON file that describes them.

    bm25.json        format, tokenizer, sizes, type and length of every array, digest of all of it
    <name>.npy       the arrays of `Postings` and of `Vocabulary`

The folder is written under a temporary name, forced to disk and renamed. So a reader sees the whole index or
none. The same documents give the same bytes.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jora_core.base.atomic_files import fsync, fsync_tree
from jora_core.base.digests import file_digest, json_digest
from jora_core.base.errors import InputError
from retrieval.search.bm25.index import BM25Index
from retrieval.search.bm25.postings import Postings
from retrieval.search.bm25.vocabulary import WORD_ARRAYS, Vocabulary, word_arrays
from retrieval.text.normalize import Tokenizer

FORMAT = "jora-bm25"
#: 2: without the counts, from which nothing is computed once the weights are there.
VERSION = 2
ABOUT = "bm25.json"
ARRAYS = (*Postings._fields, *WORD_ARRAYS)


class IndexDraft:
    """An index folder that is being written under a temporary name beside its final path."""

    def __init__(self, folder: Path) -> None:
        """Start to write the index of the path `folder`.

        Raises:
            InputError: the folder cannot be made, or it holds something other than a BM25 index.
        """
        self.folder = folder
        # An index may replace an index; nothing else is ever deleted.
        if folder.exists() and not (folder / ABOUT).is_file() and not _is_empty(folder):
            raise InputError(f"{folder}: holds something else than a BM25 index; choose another folder")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            # Beside the final folder, because a rename is atomic only within one file system.
            temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:12]}.tmp"
            temporary.mkdir()
        except OSError as error:
            raise _write_error(folder, error) from error
        self._temporary: Path | None = temporary
        self._n_spilled = 0
        # Kept for `flush`, which the plain arrays that `allocate` returns do not have.
        self._mapped: list[np.memmap] = []

    def allocate(self, name: str, dtype: np.dtype, size: int) -> np.ndarray:
        """Return an array of the index, which the caller fills.

        Args:
            name: one of `ARRAYS`.
            dtype: type of its values.
            size: number of values.

        Raises:
            InputError: its file cannot be written.
        """
        assert self._temporary is not None
        try:
            path = self._temporary / f"{name}.npy"
            if size == 0:  # an empty file cannot be mapped
                np.save(path, np.zeros(0, dtype=dtype))
                return np.zeros(0, dtype=dtype)
            mapped = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(size,))
        except OSError as error:
            raise _write_error(self.folder, error) from error
        self._mapped.append(mapped)
        # A plain array, because numpy's memmap class runs Python code at every slice.
        return np.asarray(mapped)

    def spill(self, array: np.ndarray) -> np.ndarray:
        """Move an array to a temporary file, which is removed when the index is published.

        Raises:
            InputError: the file cannot be written.
        """
        assert self._temporary is not None
        path = self._temporary / f"batch-{self._n_spilled}.npy"
        self._n_spilled += 1
        try:
            np.save(path, array)
            return np.load(path, mmap_mode="r")
        except OSError as error:
            raise _write_error(self.folder, error) from error

    def publish(self, words: Sequence[str], tokenizer: Tokenizer) -> Path:
        """Complete the folder and rename it to its final path, in place of an older index.

        Args:
            words: the terms in the order of their ids.
            tokenizer: splits documents and queries.

        Returns:
            The folder.

        Raises:
            InputError: the folder cannot be written.
        """
        assert self._temporary is not None
        try:
            for path in self._temporary.glob("batch-*.npy"):
                path.unlink()
            # Pages that are only in memory would not be part of the digest that `_describe` reads back from
            # the files.
            for mapped in self._mapped:
                mapped.flush()
            self._mapped.clear()
            for name, array in word_arrays(words).items():
                np.save(self._temporary / f"{name}.npy", array)
            about = _describe(self._temporary, tokenizer)
            (self._temporary / ABOUT).write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")
            fsync_tree(self._temporary)
            # Contents first, then the name: a crash between the two leaves the older index.
            _put_in_place(self._temporary, self.folder)
        except OSError as error:
            raise _write_error(self.folder, error) from error
        self._temporary = None
        return self.folder

    def discard(self) -> None:
        """Remove the temporary files of an index that is not published."""
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None


def save_index(index: BM25Index, folder: Path) -> None:
    """Write an index to a folder, in place of an older index.

    Raises:
        InputError: the folder cannot be written, or it holds something other than an index.
    """
    draft = IndexDraft(folder)
    try:
        for name, array in index.postings._asdict().items():
            # Array by array through a file map, so that saving needs no second copy of the index in memory.
            draft.allocate(name, array.dtype, len(array))[:] = array
        draft.publish(list(index.vocabulary), index.tokenizer)
    finally:
        draft.discard()


def load_index(folder: Path, verify: bool = False) -> BM25Index:
    """Open a saved index. Its arrays are mapped into memory and not read.

    Args:
        folder: folder of the saved index.
        verify: also read the whole index and compare its digest.

    Raises:
        InputError: the folder is missing, holds no such index, or is damaged.
    """
    about = read_about(folder)
    if verify:
        found = _digest(folder, about)
        if found != about["digest"]:
            raise _damaged(folder, f"the digest of its arrays is {found[:12]}…, not {about['digest'][:12]}…")
    arrays = {name: _open(folder, name, about["arrays"][name]) for name in ARRAYS}
    vocabulary = Vocabulary(*(arrays.pop(name) for name in WORD_ARRAYS))
    tokenizer = _tokenizer(about)
    # A query that is split by other rules finds nothing or the wrong terms, without any error.
    if about["tokenizer"] != tokenizer.settings():
        raise InputError(f"{folder}: index made with another tokenizer, {about['tokenizer']}; build it anew")
    return BM25Index(vocabulary, Postings(**arrays), tokenizer)


def read_about(folder: Path) -> dict[str, Any]:
    """Read the description of a saved index in `bm25.json`: sizes, tokenizer, digest.

    Raises:
        InputError: the folder is missing, holds no such index, is of another version, or is damaged.
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
    """Return what is wrong with the JSON, if anything."""
    try:
        sizes = {name: about["arrays"][name]["size"] for name in ARRAYS}
        dtypes = {name: np.dtype(about["arrays"][name]["dtype"]) for name in ARRAYS}
        terms, documents, postings = about["n_terms"], about["n_documents"], about["n_postings"]
        _tokenizer(about)
        # Only evaluated so that a missing key is reported here, with the others.
        str(about["digest"])[:12]
    except (KeyError, TypeError, ValueError) as error:
        return f"{_reason(error)}"
    want = {"indptr": terms + 1, "docs": postings, "weights": postings, "signatures": documents}
    by_term = ("bounds", "fence_starts", "shifts", "bits", "word_ends", "hashes", "by_hash")
    # Sizes of `fences`, `word_bytes` cannot be derived from the three counts. For them, `want` has no entry.
    want |= dict.fromkeys(by_term, terms)
    for name in ARRAYS:
        if sizes[name] != want.get(name, sizes[name]):
            return f"array {name} has {sizes[name]} values, expected {want[name]}"
        if dtypes[name].kind not in "iuf":  # objects would have to be unpickled, which may run any code
            return f"array {name} has values of type {dtypes[name]}"
    return None


def _tokenizer(about: Mapping[str, Any]) -> Tokenizer:
    settings = about["tokenizer"]
    # An index of before has no diacritics; it is refused for its rule of words.
    return Tokenizer(settings["stemmer"], settings.get("diacritics", "keep"))


def _open(folder: Path, name: str, about: Mapping[str, Any]) -> np.ndarray:
    path = folder / f"{name}.npy"
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise _damaged(folder, f"{path.name} cannot be read ({_reason(error)})") from error
    if mapped.dtype != np.dtype(about["dtype"]) or mapped.shape != (about["size"],):
        have, want = f"{mapped.dtype.str}{list(mapped.shape)}", f"{about['dtype']}[{about['size']}]"
        raise _damaged(folder, f"{path.name} holds {have}, expected {want}")
    # As a plain array: numpy's memmap class runs Python code at every slice.
    return np.asarray(mapped)


def _describe(folder: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    about: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "tokenizer": tokenizer.settings(),
        "arrays": {},
    }
    for name in ARRAYS:
        array = np.load(folder / f"{name}.npy", mmap_mode="r")
        # `dtype.str` includes the byte order (`<i4`), so a folder from a machine of the other order is
        # refused.
        about["arrays"][name] = {"dtype": array.dtype.str, "size": len(array)}
    sizes = {name: array["size"] for name, array in about["arrays"].items()}
    about |= {"n_documents": sizes["signatures"], "n_terms": sizes["bounds"], "n_postings": sizes["docs"]}
    about["digest"] = _digest(folder, about)
    return about


def _digest(folder: Path, about: Mapping[str, Any]) -> str:
    """Return a SHA-256 over the files of the arrays and all other values in the JSON."""
    arrays = {}
    for name in ARRAYS:
        try:
            arrays[name] = file_digest(folder / f"{name}.npy")
        except OSError as error:
            raise _damaged(folder, f"{name}.npy cannot be read ({_reason(error)})") from error
    # The digest cannot cover itself.
    rest = {key: value for key, value in about.items() if key != "digest"}
    return json_digest({"about": rest, "arrays": arrays})


def _put_in_place(temporary: Path, folder: Path) -> None:
    if folder.exists():
        # A folder with content cannot be replaced by a rename. The older index is renamed first; processes
        # that have it open keep their mappings of its files.
        old = temporary.with_suffix(".old")
        folder.rename(old)
        try:
            temporary.rename(folder)
        except OSError:
            old.rename(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    else:
        temporary.rename(folder)
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
