"""Sources by URL: fetched once, named as on the other side, anew when they change."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from flows.configuration.path_fields import resolve_paths
from jora_core.base.errors import InputError
from retrieval.build.build import build_record_files
from retrieval.build.inputs import input_digests, input_files
from retrieval.corpus.remote_sources import web_name
from retrieval.corpus.source_files import find_files
from retrieval.settings.context import ContextConfig
from retrieval.settings.tasks import TablesTask, ThreadsTask


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty file system in memory, a cache of the test's own, and a count of what was fetched."""
    monkeypatch.setenv("JORA_CACHE", str(tmp_path / "cache"))
    system = fsspec.filesystem("memory")
    fetched: list[str] = []
    get = MemoryFileSystem.get_file

    def counting(self: Any, remote: str, local: str, **more: Any) -> Any:
        fetched.append(remote)
        return get(self, remote, local, **more)

    monkeypatch.setattr(MemoryFileSystem, "get_file", counting)
    system.fetched = fetched
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def names(source: str, *suffixes: str) -> dict[str, str]:
    return {f.name: f.path.read_text() for f in find_files(source, suffixes or (".jsonl",), "threads.source")}


def test_files_folders_and_globs(memory: Any) -> None:
    for name in ("a.jsonl", "sub/b.jsonl", "sub/c.txt", "d.jsonl"):
        memory.pipe(f"/corpus/{name}", name.encode())
    assert names("memory://corpus") == {
        "a.jsonl": "a.jsonl",
        "sub/b.jsonl": "sub/b.jsonl",
        "d.jsonl": "d.jsonl",
    }
    assert names("memory://corpus/sub/c.txt") == {"c.txt": "sub/c.txt"}
    assert names("memory://corpus/*.jsonl") == {"a.jsonl": "a.jsonl", "d.jsonl": "d.jsonl"}
    assert sorted(memory.fetched) == sorted(
        f"/corpus/{n}" for n in ("a.jsonl", "sub/b.jsonl", "sub/c.txt", "d.jsonl")
    )


def test_fetched_once_and_anew_when_it_changes(memory: Any) -> None:
    memory.pipe("/corpus/a.jsonl", b"one")
    memory.pipe("/corpus/b.jsonl", b"same")
    assert names("memory://corpus") == names("memory://corpus") == {"a.jsonl": "one", "b.jsonl": "same"}
    assert len(memory.fetched) == 2
    memory.pipe("/corpus/a.jsonl", b"two!")
    memory.rm("/corpus/b.jsonl")
    assert names("memory://corpus") == {"a.jsonl": "two!"}
    assert memory.fetched[2:] == ["/corpus/a.jsonl"]


def test_a_remote_corpus_gives_the_bytes_of_the_local_one(
    memory: Any, threads_file: Path, tables_folder: Path, tmp_path: Path
) -> None:
    memory.put(str(tables_folder), "/bucket/tables", recursive=True)
    memory.put(str(threads_file), "/bucket/threads.ndjson")

    def config(root: str) -> ContextConfig:
        threads = ThreadsTask(source=f"{root}/threads.ndjson", legs=["bm25", "recency"], n_contexts=3)
        return ContextConfig(tables=TablesTask(source=f"{root}/tables"), threads=threads)

    here, there = config(str(tmp_path)), config("memory://bucket")
    assert input_digests(here) == input_digests(there)
    build_record_files(here, tmp_path / "one")
    build_record_files(there, tmp_path / "two")
    for name in ("records.parquet", "rankings.parquet", "metrics.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    one_tsv = there.model_copy(
        update={"threads": None, "tables": TablesTask(source="memory://bucket/tables/data/training.tsv")}
    )
    assert len(dict(input_files(one_tsv))) == 13


def test_irc_logs_bring_their_annotations(memory: Any) -> None:
    memory.pipe("/logs/x.ascii.txt", b"[03:41] <a> hi\n[03:42] <b> yo\n")
    memory.pipe("/logs/x.annotation.txt", b"0 1 -\n")
    labels = dict(input_files(ContextConfig(threads=ThreadsTask(source="memory://logs"))))
    assert sorted(labels) == ["threads/x.annotation.txt", "threads/x.ascii.txt"]


def test_a_failed_transfer_leaves_nothing(
    memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe("/corpus/a.jsonl", b"one")

    def broken(self: Any, remote: str, local: str, **more: Any) -> None:
        Path(local).write_text("o")
        raise ConnectionError("the line went dead")

    monkeypatch.setattr(MemoryFileSystem, "get_file", broken)
    with pytest.raises(
        InputError, match=r"threads\.source: memory://corpus cannot be read \(ConnectionError: the"
    ):
        names("memory://corpus")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("memory://nothing/here", "holds no files ending in .jsonl; correct the address"),
        ("memory://nothing/*.jsonl", "holds no files"),
        ("nosuchthing://x/y", "cannot be read .*nosuchthing"),
        ("file:///nothing/here", "does not exist"),
    ],
)
def test_bad_addresses_are_one_line(memory: Any, url: str, said: str) -> None:
    with pytest.raises(InputError, match=rf"threads\.source: .*{said}") as caught:
        names(url)
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named(memory: Any) -> None:
    if importlib.util.find_spec("s3fs"):
        pytest.skip("s3fs is installed")
    with pytest.raises(
        InputError, match=r"s3://bucket/x needs a package that is not installed; pip install s3fs"
    ):
        names("s3://bucket/x")


def test_file_addresses_are_read_in_place(memory: Any, threads_file: Path, tmp_path: Path) -> None:
    (found,) = find_files(f"file://{threads_file}", (".ndjson",), "threads.source")
    assert found.path == threads_file
    copied = shutil.copy(threads_file, tmp_path / "copy.ndjson")
    assert len(find_files(f"file://{Path(copied).parent}/*.ndjson", (".ndjson",), "threads.source")) == 2


def test_addresses_in_a_configuration_stay_addresses(tmp_path: Path) -> None:
    raw = {"context": {"threads": {"source": "s3://b/x.jsonl"}, "qa": {"source": "x.jsonl"}}}
    resolved = resolve_paths(raw, tmp_path, "config")["context"]
    assert resolved["threads"]["source"] == "s3://b/x.jsonl"
    assert resolved["qa"]["source"] == str(tmp_path / "x.jsonl")


def test_a_data_set_of_the_hub_comes_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("JORA_CACHE", str(tmp_path / "cache"))
    repository, commit = tmp_path / "hub" / "datasets--acme--faq", "a" * 40
    snapshot = repository / "snapshots" / commit
    (snapshot / "data").mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "b1").write_text("rows")
    # As the library lays it out: the files are links that lead out of their folder.
    (snapshot / "data" / "train.jsonl").symlink_to("../../../blobs/b1")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for source in ("", f"@{commit}", "/data"):
        found = names(f"hf://datasets/acme/faq{source}")
        assert found == {"train.jsonl" if source == "/data" else "data/train.jsonl": "rows"}
    assert names("hf://datasets/acme/faq/data/*.jsonl") == {"train.jsonl": "rows"}
    with pytest.raises(
        InputError, match=r"x\.jsonl is not in the cached copy .*`hf download --repo-type dataset acme/faq"
    ):
        names("hf://datasets/acme/faq/x.jsonl")


def test_a_data_set_that_is_not_in_the_cache_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("JORA_CACHE", str(tmp_path / "cache"))

    def unreachable(*words: Any, **more: Any) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(fsspec.core, "url_to_fs", unreachable)
    with pytest.raises(
        InputError, match=r"no route to host.*`hf download --repo-type dataset acme/faq`"
    ) as caught:
        names("hf://datasets/acme/faq")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://bob:s3cret@host/a/posts.jsonl?token=s3cret", "posts.jsonl"),
        ("https://host/a/posts.jsonl?sig=a/b/s3cret#s3cret", "posts.jsonl"),
        ("https://host/b%20c.csv", "b c.csv"),
        ("https://host/download?token=s3cret.part&file=x/rows.csv.gz", "download.csv.gz"),
        ("https://host/?id=s3cret", "download"),
    ],
)
def test_the_copy_of_a_web_file_is_named_without_credentials(address: str, name: str) -> None:
    assert web_name(address) == name
