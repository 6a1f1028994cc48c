"""Write requests to a teacher, or questions from its answers.

``python -m flows.teachers.synthesis_child --spec SPEC.json``. The stage `make-questions` starts this module
as a child process, because the libraries that read, cut and search documents are slow to import and large.
The child never asks the teacher, so it needs no network and no key.
"""

from __future__ import annotations

import json
from typing import Any

from flows.engine.errors import one_line_os_errors
from flows.teachers.synthesis_spec import ANSWER_LINES, REQUEST_LINES, SynthesisSpec
from jora_core.base.atomic_files import atomic_path, write_json
from jora_core.base.progress import ProgressBars
from jora_core.base.spec_command import peak_process_bytes, run_spec_command
from jora_core.specs.read_spec import read_spec
from retrieval.build.inputs import limits_of
from retrieval.corpus.mapped_items import Items
from retrieval.corpus.reading_limits import limited_to
from retrieval.synthesis.make_questions import make_questions
from retrieval.synthesis.read_answers import TeacherAnswer
from retrieval.synthesis.requests import REQUESTS, TeacherRequest, write_requests

METRICS = "metrics.json"


def _requests(spec: SynthesisSpec, bars: ProgressBars) -> dict[str, Any]:
    with limited_to(limits_of(spec.context)):
        counts = write_requests(spec.context, spec.work_dir, bars.show)
    with atomic_path(spec.work_dir / REQUEST_LINES) as path, path.open("w", encoding="utf-8") as lines:
        for request in Items(spec.work_dir / REQUESTS, TeacherRequest):
            names = ("id", "system", "user", "kinds", "tokens")
            lines.write(json.dumps({name: getattr(request, name) for name in names}) + "\n")
    return counts


def _questions(spec: SynthesisSpec, bars: ProgressBars) -> dict[str, Any]:
    assert spec.questions_dir is not None
    with (spec.work_dir / ANSWER_LINES).open(encoding="utf-8") as lines:
        answers = [TeacherAnswer(**json.loads(line)) for line in lines]
    found = make_questions(spec.context, spec.work_dir, answers, spec.teacher, spec.questions_dir, bars.show)
    write_json(spec.questions_dir / METRICS, found)
    return found


def main(spec: SynthesisSpec) -> None:
    """Run the step that the spec names, and write its counts to `result.json`."""
    step = _requests if spec.step == "requests" else _questions
    with one_line_os_errors("write", spec.work_dir), ProgressBars() as bars:
        result = step(spec, bars) | {"peak_memory_bytes": peak_process_bytes()}
        text = json.dumps(result, indent=1, sort_keys=True)
        (spec.output_dir / "result.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run_spec_command(
        lambda path: read_spec(path, SynthesisSpec), main, description="Write requests, or questions."
    )
