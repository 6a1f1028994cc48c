"""Vectors kept on disk: only new texts are embedded, whatever was killed, shared or damaged before."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval.build.build import build_record_files
from retrieval.search.dense import embedder as embedders
from retrieval.search.dense.embedder import Embedder, load_embedder
from retrieval.search.dense.vector_cache import VectorCache, text_digests
from retrieval.settings.context import ContextConfig
from retrieval.settings.tasks import QaTask
from tests.retrieval.conftest import NAMES, TOPICS


def counted(embedder: Embedder, monkeypatch: pytest.MonkeyPatch, *names: str) -> list[str]:
    """The texts that the model itself is given from now on."""
    seen: list[str] = []
    for name in names or ("encode_document", "encode_query"):
        real = getattr(embedder.model, name)

        def encode(texts: list[str], *args: Any, real: Callable[..., Any] = real, **kwargs: Any) -> Any:
            seen.extend(texts)
            return real(texts, *args, **kwargs)

        monkeypatch.setattr(embedder.model, name, encode)
    return seen


def many(n: int, word: str = "") -> list[str]:
    return [
        f"{word or NAMES[2]} {TOPICS[i % 9]} {NAMES[i % 6]} {i % 60} {'kettle ' * (i % 7)}{i}"
        for i in range(n)
    ]


def test_only_new_texts_are_embedded(
    tiny_embedder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrieval.search.dense.embedder.CHUNK", 64)
    embedder = load_embedder(str(tiny_embedder), "x", tmp_path)
    seen = counted(embedder, monkeypatch)
    plain = load_embedder(str(tiny_embedder), "x").encode(many(500))
    steps: list[tuple[int, int]] = []
    first = embedder.encode(many(500), lambda done, total: steps.append((done, total)))
    np.testing.assert_array_equal(first, plain)
    assert sorted(seen) == sorted(set(many(500))) and steps[-1] == (500, 500)
    seen.clear()
    steps.clear()
    again = embedder.encode([*many(500)[::-1], *many(5, "new"), *many(3, "new")], lambda *s: steps.append(s))
    assert sorted(seen) == sorted(many(5, "new")) and steps == [(5, 5)]
    np.testing.assert_array_equal(again[:500], plain[::-1])
    np.testing.assert_array_equal(again[505:], again[500:503])
    assert embedder.encode(many(9, "new")[:5], role="query").shape == (5, 16)
    assert len(seen) == 5, "a model that puts no prompt before questions has one vector a text"
    (folder,) = tmp_path.iterdir()
    assert len(list(folder.glob("*.arrow"))) == 9 == len(list(folder.iterdir()))


def test_adding_one_percent_of_the_documents_embeds_only_those(
    tiny_embedder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [{"id": f"d{i}", "text": text} for i, text in enumerate(many(404))]
    questions = [
        {"id": f"q{i}", "document_id": f"d{i}", "question": f"Which {TOPICS[i % 9]} {i}?", "answers": ["x"]}
        for i in range(0, 400, 10)
    ]

    def build(n: int, folder: str) -> None:
        for name, rows in (("documents", documents[:n]), ("questions", questions)):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = QaTask(source=str(tmp_path / "documents.jsonl"), questions=str(tmp_path / "questions.jsonl"))
        config = ContextConfig(embedder=str(tiny_embedder), embedding_cache=str(tmp_path / "cache"), qa=task)
        build_record_files(config, tmp_path / folder)

    seen: list[str] = []
    real = Embedder._embed

    def embed(self: Embedder, texts: list[str], role: embedders.Role) -> np.ndarray:
        seen.extend(texts)
        return real(self, texts, role)

    monkeypatch.setattr(Embedder, "_embed", embed)
    build(400, "one")
    assert len(seen) == 440
    seen.clear()
    build(400, "two")
    assert seen == []
    for name in ("records.parquet", "rankings.parquet", "metrics.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    build(404, "three")
    assert sorted(seen) == sorted(row["text"] for row in documents[400:])


#: A model that starts in no time, for tests that start processes: a vector is made of its text's digest.
MODEL = """
import hashlib, numpy as np
class Model:
    prompts, default_prompt_name = {}, None
    def modules(self):
        return []
    def get_embedding_dimension(self):
        return 8
    def encode_document(self, texts, **options):
        each = [np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint32) for text in texts]
        return np.array(each, dtype=np.float32) / 2**32
"""


def digest_model() -> Any:
    names: dict[str, Any] = {}
    exec(MODEL, names)
    return names["Model"]()


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_killed_run_keeps_its_finished_parts(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it writes a file: what was written before counts, the rest is as if unbroken."""
    code = f"""{MODEL}
import os, pathlib, signal
from jora_core.base import atomic_files
from retrieval.search.dense import embedder
embedder.CHUNK = 16
written, original = [], atomic_files.publish
def publish(temporary, path):
    if len(written) == {after}:
        temporary.write_bytes(temporary.read_bytes()[:-100])
        os.kill(os.getpid(), signal.SIGKILL)
    written.append(path)
    original(temporary, path)
atomic_files.publish = publish
embedder.Embedder("x", Model(), pathlib.Path({str(tmp_path)!r})).encode({many(100)!r})
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert len(list(tmp_path.glob("*.arrow"))) == after
    monkeypatch.setattr("retrieval.search.dense.embedder.CHUNK", 16)
    embedder = Embedder("x", digest_model(), tmp_path)
    seen = counted(embedder, monkeypatch, "encode_document")
    np.testing.assert_array_equal(embedder.encode(many(100)), digest_model().encode_document(many(100)))
    assert len(seen) == 100 - 16 * after


def test_two_processes_may_fill_it_at_once(tmp_path: Path) -> None:
    code = f"""{MODEL}
import pathlib, sys
from retrieval.search.dense import embedder as dense
dense.CHUNK = 8
embedder = dense.Embedder("x", Model(), pathlib.Path({str(tmp_path)!r}))
embedder.encode([])
print("ready", flush=True)
sys.stdin.readline()
for word in ("a", "b", "c"):
    embedder.encode([f"{{word}} kettle {{i}}" for i in range(200)])
"""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(2)]
    assert [process.stdout and process.stdout.readline() for process in both] == ["ready\n"] * 2
    for process in both:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate() and process.returncode for process in both] == [0, 0]
    assert {path.suffix for path in tmp_path.iterdir()} == {".arrow"}
    texts = [f"{word} kettle {i}" for word in "abc" for i in range(200)]
    cache = VectorCache.open(tmp_path, 8)
    out = np.zeros((len(texts), 8), dtype=np.float32)
    cache.take(cache.find(text_digests(texts)), out)
    np.testing.assert_array_equal(out, digest_model().encode_document(texts))


def test_damaged_files_are_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = VectorCache.open(tmp_path, 4)
    digests = text_digests(["a", "b", "c"])
    cache.add(digests, np.arange(12, dtype=np.float32).reshape(3, 4))
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    at = whole.index(np.arange(8, dtype=np.float32).tobytes())
    out = np.zeros((3, 4), dtype=np.float32)
    cache = VectorCache.open(tmp_path, 4)
    cache.take(cache.find(digests[::-1]), out)
    np.testing.assert_array_equal(out[0], [8, 9, 10, 11])
    assert (cache.find(text_digests(["d"])) == -1).all()
    path.write_bytes(whole[:at] + b"\1" + whole[at + 1 :])
    cache = VectorCache.open(tmp_path, 4)
    assert (cache.find(digests) == -1).all() and not path.exists()
    assert f"{path.name}: damaged" in caplog.text
    for broken in (whole[: len(whole) // 2], b"", b"not arrow at all"):
        path.write_bytes(broken)
        assert (VectorCache.open(tmp_path, 4).find(digests) == -1).all() and not path.exists()
    path.write_bytes(whole)
    assert (VectorCache.open(tmp_path, 5).find(digests) == -1).all(), "vectors of another width"
    assert len(caplog.records) == 5


def test_every_flip_in_a_file_is_noticed_or_harmless(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path, 4)
    digests = text_digests(["a", "b", "c"])
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    cache.add(digests, values)
    (path,) = tmp_path.glob("*.arrow")
    whole = path.read_bytes()
    noticed = 0
    for at in range(0, len(whole), 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        cache = VectorCache.open(tmp_path, 4)
        out = np.zeros((3, 4), dtype=np.float32)
        found = cache.find(digests)
        cache.take(found, out)
        known = found[:, 0] >= 0
        np.testing.assert_array_equal(out[known], values[known], err_msg=f"byte {at}")
        noticed += not path.exists()
    assert noticed > len(whole) // 12


def test_another_model_has_another_folder_and_a_moved_one_the_same(
    tiny_embedder: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(tiny_embedder, moved)
    same = [load_embedder(str(folder), "x", tmp_path / "cache").cache for folder in (tiny_embedder, moved)]
    assert same[0] == same[1] and same[0] is not None
    card = moved / "README.md"
    card.write_text(card.read_text() + "changed")
    assert load_embedder(str(moved), "x", tmp_path / "cache").cache != same[0]


def test_a_model_known_by_name_is_told_by_its_weights_and_settings(tiny_embedder: Path) -> None:
    one, two = (load_embedder(str(tiny_embedder), "x").model for _ in range(2))
    digest = embedders.model_digest(one, None)
    assert digest == embedders.model_digest(two, None)
    two.prompts["query"] = "query: "
    assert embedders.model_digest(two, None) != digest
    two.prompts["query"] = ""
    next(iter(two.parameters())).data[3] += 1e-3
    assert embedders.model_digest(two, None) != digest


def test_a_question_has_a_vector_of_its_own_where_the_model_tells_roles_apart(
    tiny_embedder: Path, tmp_path: Path
) -> None:
    model = load_embedder(str(tiny_embedder), "x").model
    model.prompts = {"query": "compass ", "document": ""}
    embedder = Embedder("prompted", model, tmp_path / "cache")
    for _ in range(2):  # embedded, then cached
        document, query = embedder.encode(["kettle"]), embedder.encode(["kettle"], role="query")
        np.testing.assert_allclose(query[0] @ document[0], 0.7, atol=0.35)
        assert np.abs(query - document).max() > 0.01
        plain = load_embedder(str(tiny_embedder), "x").encode(["compass kettle"])
        np.testing.assert_allclose(query, plain, atol=1e-6)
