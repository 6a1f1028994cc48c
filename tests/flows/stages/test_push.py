"""The stage `push` against a server on this machine that answers as the Hugging Face hub."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows.configuration.load import load_config
from flows.configuration.requirements import problems
from flows.engine.errors import StageFailed
from flows.engine.keys import identify
from flows.stages import STAGES
from flows.stages.push import push, uploads
from jora_core.base.errors import InputError
from tests.flows.conftest import Project

REPOSITORY = "me/my-model"
CARD = '# x\nfrom_pretrained("model")\nvllm serve model    # a\n| `model/config.json` | `1` |\n'
CARD += "| `adapter/a` | `2` |\n"


class Hub(ThreadingHTTPServer):
    """A hub with one right token. It keeps what it was asked, and the files of the last commit."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[str] = []
        self.made: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(self.path)
        if self.headers.get("Authorization") != "Bearer right-token":
            self._answer(403, {"error": "no right"})
        elif self.path == "/api/repos/create":
            self.server.made = json.loads(body)
            self._answer(200, {"url": f"{self.server.url}/{REPOSITORY}", "name": REPOSITORY})
        elif self.path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif self.path == f"/api/models/{REPOSITORY}/preupload/main":
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})
        elif self.path == f"/api/models/{REPOSITORY}/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"{self.server.url}/{REPOSITORY}/commit/abc"
            self._answer(200, {"success": True, "commitOid": "abc", "commitUrl": url})
        else:
            self._answer(404, {"error": f"unknown {self.path}"})

    def _answer(self, status: int, value: Any) -> None:
        raw = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "right-token")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """An artifact of the stage `export`."""
    files = {
        "model/config.json": "{}",
        "model/model.safetensors": "weights",
        "adapter/adapter_config.json": "{}",
    }
    files |= {
        "model/additional_chat_templates/rag.jinja": "x",
        "gguf/model-q8_0.gguf": "gguf",
        "README.md": CARD,
        "lineage.json": "{}",
    }
    for name, text in (files | {"manifest.json": "{}", "result.json": "{}"}).items():
        path = tmp_path / "artifact" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "artifact"


def test_one_commit_with_the_model_at_the_top(hub: Hub, exported: Path) -> None:
    found = uploads(exported, REPOSITORY)
    result = push(found, REPOSITORY)
    assert result == {"repository": REPOSITORY, "commit": "abc", "url": f"{hub.url}/{REPOSITORY}/commit/abc"}
    assert sorted(hub.files) == [each.name for each in found]
    assert sorted(hub.files) == [
        "README.md",
        "adapter/adapter_config.json",
        "additional_chat_templates/rag.jinja",
        "config.json",
        "gguf/model-q8_0.gguf",
        "lineage.json",
        "model.safetensors",
    ]
    assert hub.files["model.safetensors"] == b"weights"
    card = hub.files["README.md"].decode()
    assert f'from_pretrained("{REPOSITORY}")' in card and f"vllm serve {REPOSITORY} " in card
    assert "| `config.json` |" in card and "| `adapter/a` |" in card
    assert hub.made.get("private") is True or hub.made.get("visibility") == "private", hub.made
    assert sum(path.endswith("/commit/main") for path in hub.asked) == 1


def test_never_without_the_right_token(hub: Hub, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = uploads(exported, REPOSITORY)
    monkeypatch.setenv("HF_TOKEN", "wrong-token")
    with pytest.raises(InputError, match=f"HF_TOKEN has no right to write to {REPOSITORY}") as error:
        push(found, REPOSITORY)
    assert "wrong-token" not in str(error.value) and "\n" not in str(error.value)
    asked = len(hub.asked)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match="no token; set HF_TOKEN"):
        push(found, REPOSITORY)
    assert len(hub.asked) == asked and not hub.files
    monkeypatch.setenv("HF_TOKEN", "right-token")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StageFailed, match="the upload failed"):
        push(found, REPOSITORY)


def test_refused_before_the_training(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    config = project.config(f"export.push_to={REPOSITORY}")
    said = [problem.message for problem in problems(config) if problem.subject == "upload"]
    assert said == [
        f"export.push_to: to upload to {REPOSITORY}, set HF_TOKEN to a token that may write there, or leave "
        "push_to out"
    ]
    monkeypatch.setenv("HF_TOKEN", "right-token")
    assert not [problem for problem in problems(config) if problem.subject == "upload"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert [problem for problem in problems(config) if problem.subject == "upload"]
    for name in ("model", "me/", "me/a b", "me/-x", "me/a--b", "me/x.git", "a/b/c", "https://hf.co/me/x"):
        with pytest.raises(InputError, match=r"export\.push_to.*expected OWNER/NAME"):
            load_config(project.config_file, [f"export.push_to={name}"])


def test_the_name_changes_no_key_of_another_stage(project: Project) -> None:
    without, given = (
        identify(project.config(*change), STAGES) for change in ((), (f"export.push_to={REPOSITORY}",))
    )
    assert "push" not in without and set(given) - set(without) == {"push"}
    assert all(given[name].key == identity.key for name, identity in without.items())
    # The code of other stages is no part of its key: their output is.
    assert not [name for name in given["push"].code if "build_context" in name or "jora_core/weights" in name]
