"""The command `jora doctor`, which checks whether this machine can run the pipeline."""

from __future__ import annotations

import os
import platform
import secrets
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import typer
from packaging.requirements import Requirement

from flows.children.devices import find_devices, require_devices
from flows.commands.app import DISTRIBUTION
from flows.commands.common_options import Config, Json, Set, print_json
from flows.commands.print_pipeline import Finding, print_findings
from flows.configuration.load import load_config
from flows.configuration.requirements import problems
from flows.configuration.sample import default_config
from flows.engine.errors import StageFailed
from flows.engine.keys import identify
from flows.engine.shared.remote_files import PROBES, SETTLE_SECONDS
from flows.engine.shared.shared_store import SharedStore, open_store
from flows.orchestration.prefect_server import answers, served_url_file
from flows.stages import STAGES
from jora_core.base.errors import InputError

OLDEST_PYTHON = (3, 11)
LEAST_FREE_BYTES = 2 * 2**30


def doctor(config: Config = None, overrides: Set = None, as_json: Json = False) -> None:
    """Check this machine.

    Checks Python, packages, devices, Prefect server, disk, rights, and everything that a run of CONFIG needs.
    Each finding says how to fix it. The exit status is 2 if CONFIG is wrong, and 1 if the machine lacks
    something that a run needs.

    Args:
        config: configuration file.
        overrides: changes of single values of the configuration.
        as_json: print JSON instead of text.
    """
    machine = examine_machine()
    settings = examine_configuration(config, overrides or [])
    if as_json:
        print_json({"checks": [asdict(finding) for finding in [*machine, *settings]]})
    else:
        print_findings([*machine, *settings])
    # A wrong configuration is wrong input, as for every other command.
    for findings, status in ((settings, 2), (machine, 1)):
        if any(finding.state == "fail" for finding in findings):
            raise typer.Exit(status)


def examine_machine() -> list[Finding]:
    """Return the findings of all checks of this machine. A check that cannot be made is a finding."""
    # Checks on which others depend come first, so the user must fix the first failure first.
    return [_python(), *_packages(), _torch(), _devices(), _server()]


def _python() -> Finding:
    found = platform.python_version()
    state = "ok" if sys.version_info >= OLDEST_PYTHON else "fail"
    return Finding("python", state, f"{found} on {platform.system()} {platform.machine()} ({sys.executable})")


def _packages() -> list[Finding]:
    """Return the version of each declared dependency, and whether the declaration allows the version."""
    try:
        declared = [Requirement(line) for line in requires(DISTRIBUTION) or []]
    except PackageNotFoundError:
        return [Finding("packages", "fail", f"{DISTRIBUTION} is not installed; run `pip install -e .`")]
    findings: list[Finding] = []
    for requirement in declared:
        # Without extras: packages of `[gpu]` or `[dev]` are not missing on a machine that does not need them.
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            findings.append(Finding(requirement.name, "fail", f"missing; run `pip install '{requirement}'`"))
            continue
        # `prereleases=True`: a release candidate that the user has chosen satisfies `>=`.
        good = requirement.specifier.contains(found, prereleases=True)
        detail = found if good else f"{found}, but expected {requirement.specifier}; run `pip install -e .`"
        findings.append(Finding(requirement.name, "ok" if good else "fail", detail))
    return findings


def _torch() -> Finding:
    found = {}
    for name in ("torch", "peft"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            return Finding(
                "export check",
                "warn",
                f"{name} is missing, so exports are not reloaded and compared; run `pip install {name}`",
            )
    return Finding("export check", "ok", ", ".join(f"{name} {number}" for name, number in found.items()))


def _devices() -> Finding:
    try:
        found = find_devices()
    except InputError as error:
        return Finding("devices", "fail", str(error))
    return Finding(
        "devices",
        "ok",
        f"{len(found.kinds)} × {found.kinds[0]} ({found.backend}), {os.cpu_count()} CPU cores",
    )


def _server() -> Finding:
    # From the environment and not from Prefect's settings, whose import is slow.
    urls = [os.environ.get("PREFECT_API_URL"), _read(served_url_file())]
    for url in filter(None, urls):
        if answers(url):
            return Finding("prefect server", "ok", f"answers at {url}")
    named = next(filter(None, urls), None)
    if named:
        return Finding(
            "prefect server",
            "warn",
            f"none answers at {named}; start it, or unset PREFECT_API_URL: runs then start one of their own",
        )
    return Finding(
        "prefect server", "ok", "none running; runs start one of their own, `jora serve` a lasting one"
    )


def examine_configuration(path: Path | None, overrides: Sequence[str]) -> list[Finding]:
    """Check a configuration, what a run of it needs, its input files, and whether its store can be written.

    Args:
        path: YAML file; None takes the default configuration.
        overrides: changes of single values.
    """
    try:
        config = load_config(path, overrides)
    except ValueError as error:
        # Without a configuration there is neither an input nor a store to look at.
        return [_refused("configuration", error)]
    findings = [Finding("configuration", "ok", str(path or default_config()))]
    for problem in problems(config):
        findings.append(Finding(problem.subject, "fail" if problem.fatal else "warn", problem.message))
    try:
        require_devices(config.mesh.devices)
    except InputError as error:
        findings.append(Finding("mesh", "fail", str(error)))
    try:
        count = sum(len(identity.inputs) for identity in identify(config, STAGES).values())
        findings.append(Finding("input files", "ok", f"{count} files"))
    except ValueError as error:
        findings.append(_refused("input files", error))
    store = open_store(config)
    findings.append(_writable(store.root))
    if isinstance(store, SharedStore):
        findings += _shared(store)
    return findings


def _shared(store: SharedStore) -> list[Finding]:
    """Check whether a shared store can be written, whether its leases are exclusive, and its files' sizes."""
    try:
        probe = f"{PROBES}/{secrets.token_hex(8)}"
        store.remote.write(probe, b"{}")
        store.remote.remove(probe)
        exclusive = store.remote.exclusive
        lost = store.incomplete()
    except (InputError, StageFailed) as error:
        return [Finding("shared store", "fail", str(error))]
    detail = f"{store.remote.url} can be written, {store.root} is the folder before it"
    found = [Finding("shared store", "ok", detail)]
    if not exclusive:
        found.append(
            Finding(
                "shared store",
                "warn",
                "it has no conditional writes: a machine that takes a lease waits "
                f"{SETTLE_SECONDS:g} s, and a slower write can let two machines compute one stage",
            )
        )
    if lost:
        found.append(
            Finding(
                "shared store",
                "warn",
                f"{len(lost)} files are missing or have another size, such as {lost[0]}; the next run that "
                "needs one replaces it, on a machine without a whole copy it computes the stage again",
            )
        )
    return found


def _refused(name: str, error: ValueError) -> Finding:
    if not isinstance(error, InputError):
        raise error
    return Finding(name, "fail", str(error))


def _writable(store: Path) -> Finding:
    """Check whether the folder of the store can be written, with a temporary file."""
    # The nearest existing folder decides whether the store can be created. `jora doctor` creates no folder.
    place = next(folder for folder in (store, *store.parents) if folder.exists())
    try:
        # Only a write is reliable: `os.access` ignores quotas, read-only mounts and network file systems.
        with tempfile.NamedTemporaryFile(dir=place, prefix=".jora-probe-") as probe:
            probe.write(b"\0")
            probe.flush()
        free = shutil.disk_usage(place).free
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        return Finding(
            "store",
            "fail",
            f"cannot write to {store}: {reason}; choose another folder with --set store=FOLDER",
        )
    detail = f"{store} can be written, {free / 2**30:.1f} GiB free"
    if free < LEAST_FREE_BYTES:
        return Finding("store", "warn", f"{detail}; `jora gc` removes what no run needs")
    return Finding("store", "ok", detail)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
