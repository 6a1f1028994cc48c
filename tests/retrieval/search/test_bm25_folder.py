"""Indexes that are streamed, saved and loaded: always the one that a build in memory gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_bm25 import BM25Okapi

from jora_core.base.errors import InputError
from retrieval.search.bm25 import weights
from retrieval.search.bm25.builder import BM25Builder, build_index
from retrieval.search.bm25.folder import load_index, save_index
from retrieval.search.bm25.index import BM25Index
from retrieval.search.bm25.postings import Postings
from retrieval.search.bm25.vocabulary import Vocabulary, known_ids, word_arrays
from retrieval.text.normalize import STEMMERS, Tokenizer

WORD = st.sampled_from(["a", "b", "c", "d", "e", "f", "g", "the", "of", "naïve", "東京", "\ud800"])
DOCUMENTS = st.lists(st.lists(WORD, max_size=9), max_size=9)


def assert_same(one: BM25Index, other: BM25Index) -> None:
    """Equal in every bit, and in the types of the arrays."""
    assert list(one.vocabulary) == list(other.vocabulary)
    assert one.n_documents == other.n_documents
    for name, a, b in zip(Postings._fields, one.postings, other.postings, strict=True):
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a, b, err_msg=name)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def zipf_texts(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(f"w{w}" for w in rng.zipf(1.3, size=n) if w < 900) for n in rng.integers(0, 30, count)]


def test_long_documents_and_frequent_words_need_wider_counts() -> None:
    long = ["x"] * 300 + [f"y{i}" for i in range(70_000)] + ["x"]
    corpus = [["a"], long, ["x", "y3"], ["b"], ["c"]]
    index, library = build_index(corpus), BM25Okapi(corpus)
    for word in ("x", "y69999", "y3", "a"):
        np.testing.assert_array_equal(index.scores([word]), library.get_scores([word]))


@settings(max_examples=25, deadline=None)
@given(corpus=DOCUMENTS)
def test_a_saved_index_is_the_same(corpus: list[list[str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("bm25") / "index"
    index = build_index(corpus)
    save_index(index, folder)
    loaded = load_index(folder, verify=True)
    assert_same(loaded, index)
    query = ["a", "東京", "\ud800", "never", "a"]
    np.testing.assert_array_equal(loaded.scores(query), index.scores(query))
    assert [path.name for path in folder.parent.iterdir()] == ["index"]
    shutil.rmtree(folder.parent)


@pytest.mark.parametrize("stemmer", ["none", "english"])
def test_a_streamed_index_is_the_same(stemmer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = zipf_texts(500) + ["Running runners ran", "the runner runs"]
    tokenizer = Tokenizer(stemmer)  # type: ignore[arg-type]
    split = tokenizer("words that were split before")
    expected = build_index([*map(tokenizer, texts), split, *map(tokenizer, texts)], tokenizer)
    save_index(build_index([["older"]]), tmp_path / "whole")
    save_index(expected, tmp_path / "whole")
    monkeypatch.setattr("retrieval.search.bm25.builder.BATCH_TOKENS", 700)
    monkeypatch.setattr(weights, "CHUNK", 100)
    with BM25Builder(tokenizer, tmp_path / "streamed") as builder:
        for start in range(0, len(texts), 37):
            builder.add(texts[start : start + 37])
        builder.add_tokens([split])
        builder.add(iter(texts))
        index = builder.finish()
    assert_same(index, expected)
    assert index.tokenizer == tokenizer and isinstance(index.postings.docs.base, np.memmap)
    assert files_of(tmp_path / "streamed") == files_of(tmp_path / "whole")


def test_an_index_in_use_may_be_replaced(tmp_path: Path) -> None:
    save_index(build_index([["a"], ["b"]]), tmp_path / "index")
    index = load_index(tmp_path / "index")
    save_index(build_index([["a"], ["b"], ["c", "a"]]), tmp_path / "index")
    assert index.scores(["a"]).tolist() == build_index([["a"], ["b"]]).scores(["a"]).tolist()
    assert load_index(tmp_path / "index", verify=True).n_documents == 3


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), BM25Builder(folder=tmp_path / "index") as builder:
        builder.add(["a b c"] * 10)
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def damage(folder: Path, what: str) -> None:
    about = json.loads((folder / "bm25.json").read_text())
    match what:
        case "gone":
            shutil.rmtree(folder)
        case "no json":
            (folder / "bm25.json").unlink()
        case "half a json":
            (folder / "bm25.json").write_text('{"format": "jora-b')
        case "foreign":
            (folder / "bm25.json").write_text('{"version": 1}')
        case "newer":
            (folder / "bm25.json").write_text(json.dumps(about | {"version": 3}))
        case "other tokenizer":
            about["tokenizer"]["words"] = "by space"
            (folder / "bm25.json").write_text(json.dumps(about))
        case "keys missing":
            del about["arrays"]["docs"]
            (folder / "bm25.json").write_text(json.dumps(about))
        case "sizes":
            about["n_postings"] += 1
            (folder / "bm25.json").write_text(json.dumps(about))
        case "array gone":
            (folder / "docs.npy").unlink()
        case "array cut":
            (folder / "docs.npy").write_bytes((folder / "docs.npy").read_bytes()[:-2])
        case "array of another":
            np.save(folder / "docs.npy", np.zeros(3))
        case "pickle":
            np.save(folder / "docs.npy", np.array([{}], dtype=object), allow_pickle=True)
        case "bit":
            data = bytearray((folder / "weights.npy").read_bytes())
            data[-1] ^= 1
            (folder / "weights.npy").write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("gone", "no BM25 index is there"),
        ("no json", "no BM25 index is there"),
        ("half a json", r"is damaged: bm25.json cannot be read \(JSONDecodeError"),
        ("foreign", "not of a BM25 index"),
        ("newer", "index of version 3, this code reads 2; build it anew"),
        ("other tokenizer", "made with another tokenizer"),
        ("keys missing", "damaged: bm25.json: KeyError: 'docs'"),
        ("sizes", r"array docs has \d+ values, expected \d+"),
        ("array gone", r"docs.npy cannot be read \(No such file"),
        ("array cut", r"docs.npy cannot be read \(ValueError: mmap length"),
        ("array of another", r"docs.npy holds <f8\[3\], expected <i4"),
        ("pickle", "docs.npy cannot be read"),
        ("bit", "the digest of its arrays"),
    ],
)
def test_damage_is_told_in_one_line(what: str, said: str, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    save_index(build_index([["a", "b"], ["b", "c"]]), folder)
    damage(folder, what)
    with pytest.raises(InputError, match=said) as caught:
        load_index(folder, verify=what == "bit")
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_other_folders_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something else than a BM25 index"):
        save_index(build_index([["a"]]), tmp_path)
    with pytest.raises(InputError, match=r"cannot be written \(Not a directory\)|File exists"):
        BM25Builder(folder=tmp_path / "notes.txt" / "index")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@given(st.lists(st.text(max_size=6), unique=True, max_size=30), st.lists(st.text(max_size=6), max_size=10))
def test_vocabulary_answers_as_a_dict(words: list[str], others: list[str]) -> None:
    vocabulary = Vocabulary(**word_arrays(words))
    expected = {word: number for number, word in enumerate(words)}
    assert dict(vocabulary) == expected and len(vocabulary) == len(words)
    for _ in range(2):  # looked up, then remembered
        assert known_ids(vocabulary, others + words) == known_ids(expected, others + words)


def test_words_with_equal_hashes_are_told_apart() -> None:
    words = ["plumless", "x", "buckeroo"]  # the first and the last have the same CRC-32
    vocabulary = Vocabulary(**word_arrays(words))
    assert vocabulary.hashes[1] == vocabulary.hashes[2] or vocabulary.hashes[0] == vocabulary.hashes[1]
    assert [vocabulary[word] for word in words] == [0, 1, 2]
    with pytest.raises(KeyError):
        vocabulary["plum"]


def test_stemmers_are_those_of_the_library() -> None:
    import Stemmer

    assert set(STEMMERS) - {"none"} <= set(Stemmer.algorithms())
    with pytest.raises(InputError, match="bm25_stemmer: 'klingon' is unknown; expected none, arabic"):
        Tokenizer("klingon")  # type: ignore[arg-type]
    assert Tokenizer("english")("Running in NAÏVE circles") == ["run", "in", "naïv", "circl"]
    assert Tokenizer("german")("Häuser") == Tokenizer("german")("Haus")
