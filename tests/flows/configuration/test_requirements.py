"""What a run would miss, found by `jora plan` from settings and names of files."""

from __future__ import annotations

from pathlib import Path

import yaml

from flows.configuration.load import load_config
from flows.configuration.requirements import problems
from tests.flows.orchestration.serving.small_project import write_project


def messages(path: Path, *changes: str) -> list[str]:
    return [problem.message for problem in problems(load_config(path, changes)) if problem.fatal]


def test_a_task_without_questions_is_found_before_a_run(tmp_path: Path) -> None:
    path = write_project(tmp_path / "project")
    assert messages(path) == []
    (tmp_path / "project" / "questions.jsonl").write_text("")
    assert messages(path) == [
        f"context.qa.questions: {tmp_path}/project/questions.jsonl is empty; expected a question a row"
    ]
    config = yaml.safe_load(path.read_text())
    del config["context"]["qa"]["questions"]
    path.write_text(yaml.safe_dump(config))
    assert messages(path) == [
        "context.qa.questions: nothing is named, and text files such as carpet.md hold no questions; name a "
        "file with a question a row"
    ]
    # Other files may hold both, as those of SQuAD do.
    (tmp_path / "project" / "docs" / "squad.json").write_text("{}")
    assert messages(path) == []
