"""The template of the prompts in a configuration: names, files, other tools' names, and what keys see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.configuration.load import load_config
from flows.configuration.prompts import prompt_settings, prompt_spec
from flows.configuration.requirements import problems
from jora_core.base.errors import InputError

OWN = "{% for m in messages %}<s>{{ m.role }} {{ m.content }}</s>{% endfor %}"


def write(folder: Path, prompt: object = None, template: str | None = None) -> Path:
    raw: dict[str, Any] = {
        "model": {"path": "model"},
        "context": {"tables": {"source": str(folder / "tables")}},
        "phases": [{"stage": "finetune-task", "tasks": ["tables"], "max_steps": 1}],
    }
    if prompt is not None:
        raw["prompt"] = prompt
    (folder / "model").mkdir(exist_ok=True)
    settings = {} if template is None else {"chat_template": template}
    (folder / "model" / "tokenizer_config.json").write_text(json.dumps(settings))
    path = folder / "jora.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_auto_is_what_it_chooses(tmp_path: Path) -> None:
    chosen = {}
    for template in (None, OWN):
        for prompt in (None, "auto", "alpaca", {"template": "chat"}):
            if template is None and prompt == {"template": "chat"}:
                continue
            chosen[template, str(prompt)] = prompt_settings(load_config(write(tmp_path, prompt, template)))
    names = {key: found["template"] for key, found in chosen.items()}
    assert names[None, "None"] == names[None, "auto"] == "alpaca"
    assert names[OWN, "None"] == names[OWN, "{'template': 'chat'}"] == "tokenizer_config.json"
    # One key for one template, however it was named.
    assert chosen[None, "auto"] == chosen[OWN, "alpaca"] != chosen[OWN, "auto"]


def test_a_file_counts_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text(OWN)
    config = load_config(write(tmp_path, {"template": "own.jinja", "system": "Be brief."}))
    assert config.prompt.template == str(tmp_path / "own.jinja"), "counted from the configuration"
    assert prompt_spec(config).template == OWN, "a spec holds the template itself"
    before = prompt_settings(config)
    assert before["system"] == "Be brief." and str(tmp_path) not in str(before)
    (tmp_path / "own.jinja").write_text(OWN + "\n")
    assert prompt_settings(config)["digest"] != before["digest"]


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("chat", "has no chat template"),
        ("nowhere.jinja", "no such file"),
        ("{% for m in messages %}", "line 1"),
        ("{% if 1 %}{{ raise_exception('never') }}{% endif %}", "refuses the messages: never"),
        ("{question}", "bad field {question}"),
    ],
)
def test_wrong_templates_are_found_before_a_run(tmp_path: Path, prompt: str, said: str) -> None:
    config = load_config(write(tmp_path, prompt))
    (found,) = [problem for problem in problems(config) if problem.subject == "prompt template"]
    assert said in found.message and found.message.startswith("prompt.template") and "\n" not in found.message


def test_names_of_other_tools(tmp_path: Path) -> None:
    path = write(tmp_path)
    for name, ours in (("chat_template", "prompt.template"), ("system_prompt", "prompt.system")):
        path.write_text(f"{path.read_text()}\n{name}: chatml\n")
        with pytest.raises(InputError, match=f"{name}: unknown key; its name here is {ours}"):
            load_config(path)
        write(tmp_path)
