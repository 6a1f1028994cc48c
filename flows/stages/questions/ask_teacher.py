"""The work of the stage `make-questions`: requests, the teacher's answers, the files of questions."""

from __future__ import annotations

import heapq
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flows.children.run_child import inside_flow_run, log_line, run_child
from flows.configuration.schema import PipelineConfig
from flows.stages.model_conversion import tokenizer_folder
from flows.teachers.answer_store import AnswerStore
from flows.teachers.ask_local import ask_local
from flows.teachers.ask_server import Asked, ask_server
from flows.teachers.estimate import Estimate, estimate
from flows.teachers.synthesis_spec import ANSWER_LINES, CHILD, REQUEST_LINES, SynthesisSpec
from flows.teachers.teacher import generation, identity, key_of, model_folder, teacher_name
from jora_core.base.atomic_files import atomic_path
from jora_core.base.progress import progress
from jora_core.specs.answers import PredictSpec
from jora_core.specs.common import ComputeSettings, values_of

# Folder of the answers in the cache of a store.
FOLDER = "teachers"
ANSWERING = "ask the teacher"


@dataclass(frozen=True)
class Teaching:
    """The making of questions of one configuration, in folders.

    Attributes:
        config: the configuration.
        work_dir: folder of chunks, requests, answers and the index.
        cache_dir: cache folder of the store, with the answers of all teachers.
    """

    config: PipelineConfig
    work_dir: Path
    cache_dir: Path

    def write_requests(self) -> dict[str, Any]:
        """Read and cut the documents, and write the requests about them; return counts.

        Raises:
            InputError: a source cannot be read, or nothing can be asked.
        """
        return run_child(CHILD, self._spec("requests"), self.work_dir / "specs")

    def open_store(self) -> AnswerStore:
        """Open the answers of the teacher."""
        return AnswerStore(self.cache_dir / FOLDER, identity(self.config))

    def requests(self, sample: int | None = None) -> Iterator[Asked]:
        """Yield the requests that `write_requests` has written.

        Args:
            sample: yield so many only. Their digests choose them, so it is a fair draw.
        """
        if sample is not None:
            yield from heapq.nsmallest(sample, self.requests(), key=lambda request: request.id)
            return
        with (self.work_dir / REQUEST_LINES).open(encoding="utf-8") as lines:
            for line in lines:
                yield Asked(**json.loads(line))

    def ask(self, sample: int | None = None) -> dict[str, Any]:
        """Ask the teacher for what is not answered yet; return counts.

        Args:
            sample: ask for so many requests at most.

        Raises:
            InputError: the teacher cannot be used.
            StageFailed: a budget is spent. What is answered stays.
        """
        settings = generation(self.config)
        store = self.open_store()
        total = sum(1 for _ in self.requests(sample))
        done = sum(store.has(request.id) for request in self.requests(sample))
        try:
            # In a Prefect task as a line of its log, like those of child processes.
            write = log_line() if inside_flow_run() else None
            with progress(ANSWERING, total, shown=done < total, done=done, write=write) as bar:
                if settings.teacher.kind == "local":
                    return ask_local(
                        lambda: self.requests(sample),
                        settings,
                        self._predict_spec(),
                        store,
                        lambda note: bar.advance(note=note),
                    )
                return ask_server(
                    lambda: self.requests(sample),
                    settings,
                    self._reasoned,
                    store,
                    key_of(self.config),
                    bar.advance,
                )
        finally:
            store.close()

    def write_questions(self, output: Path, sample: int | None = None) -> dict[str, Any]:
        """Write the files of questions from the teacher's answers; return counts.

        Args:
            output: folder of the files.
            sample: of so many requests only.

        Raises:
            InputError: the decisions cannot be read.
        """
        store = self.open_store()
        statuses: dict[str, int] = {}
        try:
            with (
                atomic_path(self.work_dir / ANSWER_LINES) as path,
                path.open("w", encoding="utf-8") as lines,
            ):
                for answer in store.answers(request.id for request in self.requests(sample)):
                    statuses[answer.status] = statuses.get(answer.status, 0) + 1
                    lines.write(json.dumps(asdict(answer)) + "\n")
        finally:
            store.close()
        found = run_child(CHILD, self._spec("questions", output), self.work_dir / "specs")
        return {**found, "answers": dict(sorted(statuses.items()))}

    def estimate(self) -> Estimate:
        """Return what the open requests will take."""
        store = self.open_store()
        try:
            return estimate(self.requests(), generation(self.config), self._reasoned, store)
        finally:
            store.close()

    @property
    def _reasoned(self) -> bool:
        return self.config.context.qa is not None and self.config.context.qa.answer_style == "reasoned"

    def _spec(self, step: Any, output: Path | None = None) -> SynthesisSpec:
        context = self.config.context.of_task("qa")
        if context.tokenizer and context.counts_tokens:
            folder = tokenizer_folder(Path(context.tokenizer), self.cache_dir, self.work_dir)
            context = context.model_copy(update={"tokenizer": str(folder)})
        folder = self.work_dir / "specs" / step
        folder.mkdir(parents=True, exist_ok=True)
        return SynthesisSpec(
            step=step,
            context=context,
            work_dir=self.work_dir,
            teacher=teacher_name(self.config),
            questions_dir=output,
            output_dir=folder,
        )

    def _predict_spec(self) -> PredictSpec:
        config = self.config
        teacher = generation(config).teacher
        folder = self.work_dir / "teacher"
        return PredictSpec(
            model=model_folder(config),
            systems={"teacher": None if teacher.adapter_folder is None else Path(teacher.adapter_folder)},
            records=folder / "records.parquet",
            mode="generate",
            stream=True,
            sharing="off",
            tokens_per_batch=config.evaluate.tokens_per_batch,
            mesh=config.mesh,
            **values_of(ComputeSettings, config.model),
            output_dir=folder,
            compilation_cache_dir=self.cache_dir / "jax",
        )


def estimate_questions(
    config: PipelineConfig, cache_dir: Path, say: Callable[[str], None] = lambda line: None
) -> Estimate:
    """Return what the stage would ask for. The documents are read and cut in a folder that is removed.

    Args:
        config: a configuration that makes questions.
        cache_dir: cache folder of the store.
        say: called with a line before the work.

    Raises:
        InputError: a source cannot be read, or nothing can be asked.
    """
    say("make-questions: reading the documents, to count what would be asked")
    with tempfile.TemporaryDirectory(prefix="jora-questions-") as name:
        teaching = Teaching(config, Path(name), cache_dir)
        teaching.write_requests()
        return teaching.estimate()
