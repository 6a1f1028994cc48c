"""The files of deploy/ against the validators of their formats, and against one another."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
OVERLAYS = ("cpu", "gpu", "multi-host")


def tool(name: str) -> str:
    """Path of a program of the environment or the system; skips where it is absent."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed")
    return found


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def documents(path: Path) -> list[dict[str, Any]]:
    return [item for item in yaml.safe_load_all(path.read_text(encoding="utf-8")) if item]


def settings(name: str) -> dict[str, str]:
    text = (DEPLOY / "settings" / name).read_text(encoding="utf-8")
    return dict(line.split("=", 1) for line in text.splitlines() if line and not line.startswith("#"))


def manifests() -> list[Path]:
    paths = sorted((DEPLOY / "kubernetes").rglob("*.yaml"))
    return [path for path in paths if path.name != "kustomization.yaml"]


def pods() -> list[tuple[str, dict[str, Any]]]:
    """Name and pod specification of each workload, with the GPU runs of the job template."""
    found = [
        (f"{path.parent.name}/{item['metadata']['name']}", item["spec"]["template"]["spec"])
        for path in manifests()
        for item in documents(path)
        if item["kind"] in ("Deployment", "StatefulSet", "Job")
    ]
    template = json.loads((DEPLOY / "kubernetes" / "overlays" / "gpu" / "job-template.json").read_text())
    return [*found, ("run", template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"])]


def test_compose_has_the_official_schema(tmp_path: Path) -> None:
    check = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
    done = run(*check, DEPLOY / "compose" / "compose.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    broken = tmp_path / "compose.yaml"
    broken.write_text(
        (DEPLOY / "compose" / "compose.yaml").read_text().replace("healthcheck:", "healtcheck:")
    )
    assert run(*check, broken).returncode == 1, "the schema accepts anything"


def test_compose_names_what_is_there() -> None:
    (compose,) = documents(DEPLOY / "compose" / "compose.yaml")
    for name, service in compose["services"].items():
        for file in service.get("env_file", []):
            assert (DEPLOY / "compose" / file).is_file(), (name, file)
        for used, declared in (("secrets", compose["secrets"]), ("networks", compose["networks"])):
            assert set(service.get(used, [])) <= set(declared), (name, used)
        assert set(service.get("depends_on", {})) <= set(compose["services"])
        for secret in re.findall(r"/run/secrets/(\w+)", json.dumps(service)):
            assert secret in service["secrets"], (name, secret)
    # Only the server and its services reach the databases, and only the server's port is open, on loopback.
    inside = {name for name, item in compose["services"].items() if "state" in item["networks"]}
    assert inside == {"postgres", "redis", "migration", "server", "services"}
    ports = {name: item["ports"] for name, item in compose["services"].items() if "ports" in item}
    assert ports == {"server": ["127.0.0.1:${JORA_PORT:-4200}:4200"]}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kustomize_builds_valid_manifests(overlay: str) -> None:
    built = run(tool("kubectl"), "kustomize", DEPLOY / "kubernetes" / "overlays" / overlay)
    assert built.returncode == 0, built.stderr
    validate = pytest.importorskip("kubernetes_validate").validate
    for item in yaml.safe_load_all(built.stdout):
        validate(item, "1.33", strict=True)


@pytest.mark.parametrize("path", manifests(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_manifests_are_valid(path: Path) -> None:
    """Each manifest by itself, where there is no kubectl."""
    validator = pytest.importorskip("kubernetes_validate")
    for item in documents(path):
        validator.validate(item, "1.33", strict=True)
    broken = documents(path)[-1] | {"nonsense": 1}
    with pytest.raises(validator.ValidationError):
        validator.validate(broken, "1.33", strict=True)


def test_job_template_gives_a_valid_job() -> None:
    """Prefect fills in the variables' defaults; the result is a job with a GPU."""
    from prefect.utilities.templating import apply_values

    path = DEPLOY / "kubernetes" / "overlays" / "gpu" / "job-template.json"
    template = json.loads(path.read_text(encoding="utf-8"))
    variables = template["variables"]["properties"]
    placeholders = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert placeholders <= set(variables)
    assert {name for name in variables if name not in placeholders} == set()
    values = {name: item["default"] for name, item in variables.items() if item.get("default") is not None}
    values |= {"name": "run", "command": ["prefect", "flow-run", "execute"], "labels": {}, "annotations": {}}
    values["env"] = [{"name": name, "value": value} for name, value in values["env"].items()]
    job = apply_values(template["job_configuration"]["job_manifest"], values)
    limits = job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == 1
    limits["nvidia.com/gpu"] = "1"  # the API server also accepts a number
    pytest.importorskip("kubernetes_validate").validate(job, "1.33", strict=True)


@pytest.mark.parametrize(("name", "pod"), pods(), ids=[name for name, _ in pods()])
def test_pods_are_closed(name: str, pod: dict[str, Any]) -> None:
    """No root, no capabilities, limits for memory, no token of the Kubernetes API unless it is needed."""
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True and context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is (name == "gpu/worker-gpu")
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"] and container["resources"]["requests"]


def test_dockerfile_is_clean() -> None:
    done = run(tool("hadolint"), DEPLOY / "docker" / "Dockerfile")
    assert done.returncode == 0, done.stdout
    text = (DEPLOY / "docker" / "Dockerfile").read_text(encoding="utf-8")
    assert re.search(r"^ARG BASE=python:\d+\.\d+\.\d+-", text, re.M), "the base image has no exact version"
    assert re.search(r"^USER 10001:10001$", text, re.M) and "HEALTHCHECK" in text
    assert text.count("-c constraints.txt") == 2


def test_systemd_units_are_valid(tmp_path: Path) -> None:
    analyze = tool("systemd-analyze")
    units = sorted((DEPLOY / "systemd").glob("*.service"))
    for unit in units:
        # systemd looks for the program, which is not installed here.
        text = unit.read_text(encoding="utf-8").replace("/opt/jora/bin/jora-entrypoint", "/bin/true")
        (tmp_path / unit.name).write_text(text, encoding="utf-8")
    done = run(analyze, "verify", *(tmp_path / unit.name for unit in units))
    assert done.returncode == 0 and not done.stderr, done.stderr
    (tmp_path / units[0].name).write_text(
        text.replace("ProtectHome=true", "ProtecHome=true"), encoding="utf-8"
    )
    assert "ProtecHome" in run(analyze, "verify", tmp_path / units[0].name).stderr


def test_settings_are_prefects() -> None:
    """Every name is a setting of the installed Prefect, and every module can be imported."""
    import importlib

    from prefect.settings import get_current_settings
    from prefect.settings.legacy import _get_settings_fields

    known = set(_get_settings_fields(type(get_current_settings())))
    given = {**settings("common.env"), **settings("server.env")}
    assert {name for name in given if name.startswith("PREFECT_") and name not in known} == set()
    modules = [value for value in settings("server.env").values() if value.startswith("prefect_redis.")]
    assert len(modules) == 5
    pytest.importorskip("prefect_redis")
    for module in modules:
        importlib.import_module(module)


def test_entrypoint_reads_secrets(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("p@ss/word\n")
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "JORA_REDIS_HOST": "redis",
        "JORA_REDIS_PASSWORD_FILE": str(secret),
        "PREFECT_API_AUTH_STRING_FILE": str(secret),
    }
    entrypoint = DEPLOY / "docker" / "entrypoint.sh"
    done = run(entrypoint, "env", env=environment)
    found = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert found["PREFECT_API_AUTH_STRING"] == "p@ss/word"
    assert found["PREFECT_SERVER_DOCKET_URL"] == "redis://:p%40ss%2Fword@redis:6379/1"
    for name in ("MESSAGING", "WORKER_CLEANUP_QUEUE"):
        assert found[f"PREFECT_REDIS_{name}_URL"] == "redis://:p%40ss%2Fword@redis:6379/0"
    for content, message in ((None, "cannot read"), ("", "is empty")):
        secret.unlink()
        if content is not None:
            secret.write_text(content)
        done = run(entrypoint, "env", env=environment)
        assert done.returncode == 2 and message in done.stderr and done.stdout == "", done.stderr
        secret.touch()


def test_compose_secrets_are_made_once(tmp_path: Path) -> None:
    script = shutil.copy(DEPLOY / "compose" / "make_secrets.sh", tmp_path)
    assert run("sh", script).returncode == 0
    made = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    (compose,) = documents(DEPLOY / "compose" / "compose.yaml")
    assert set(made) == set(compose["secrets"]) and len(set(made.values())) == 3
    assert all(len(value) >= 48 for value in made.values()) and made["api_auth"].startswith("operator:")
    assert "kept" in run("sh", script).stdout
    assert made == {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
