"""The command `jora questions`: let a teacher make questions, look at them, decide about them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands import print_pipeline
from flows.commands.common_options import Config, Force, Json, Set, load, print_json, print_status
from flows.commands.prompts.review_files import FORMATS, read_review, write_review
from flows.commands.stage_runs import log_to_stderr, run_stages_here
from flows.configuration.schema import PipelineConfig
from flows.engine.artifact_store import MANIFEST, read_manifest
from flows.engine.shared.shared_store import open_store
from flows.stages.questions.ask_teacher import Teaching
from flows.teachers.teacher import STAGE, generation
from jora_core.base.errors import InputError

# Questions that are printed of a sample.
_SHOWN = 20


def questions(
    *,
    config: Config = None,
    sample: Annotated[int | None, typer.Option("--sample", min=1, metavar="N")] = None,
    review: Annotated[Path | None, typer.Option("--review", metavar="FILE")] = None,
    decisions: Annotated[Path | None, typer.Option("--decisions", metavar="FILE")] = None,
    force: Force = False,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Let a teacher make questions (stage make-questions).

    Asks the teacher of context.qa.generate about each chunk of the documents, checks what it writes, and
    prints what was made and what was refused, by reason. What is answered already is not asked again. `jora
    plan` says before what it will take.

    \b
    Examples:
      jora questions --sample 20                twenty requests: how good is this teacher, what does it cost?
      jora questions                            all of them
      jora questions --review questions.html    a page to accept, edit and refuse them
      jora questions --decisions decisions.csv  make the files anew, with these decisions

    Args:
        config: configuration file.
        sample: Ask for so many requests only, drawn fairly, and print the questions; no artifact is written.
        review: Also write the questions for a person who decides about them: a .html or .csv file.
        decisions: Decisions of a person, in place of context.qa.generate.decisions.
        force: run even what is up to date.
        overrides: changes of single values of the configuration.
        as_json: print JSON instead of text.
    """
    changes = list(overrides or [])
    if decisions is not None:
        # As the user types it, from the working directory, like other paths of `--set`.
        changes.append(f"context.qa.generate.decisions={json.dumps(str(decisions))}")
    settings = load(config, changes)
    generation(settings)
    if review is not None and review.suffix.lower() not in FORMATS:
        raise InputError(f"--review {review}: expected a file that ends in {' or '.join(FORMATS)}")
    if sample is not None:
        if review is not None or force:
            raise InputError("--sample writes no artifact, so it excludes --review and --force")
        _sample(settings, sample, as_json)
        return
    (reference,) = run_stages_here([STAGE], settings, force, as_json)
    manifest = read_manifest(Path(reference.path) / MANIFEST)
    if not as_json and manifest is not None:
        print_made(manifest["metrics"])
    if review is not None:
        rows = read_review(Path(reference.path))
        write_review(review, rows, settings.project)
        print_status(f"{review}: {len(rows):,} questions to decide about")


def _sample(config: PipelineConfig, size: int, as_json: bool) -> None:
    """Ask for some requests, and print the questions and what they have taken."""
    log_to_stderr()
    store = open_store(config)
    with tempfile.TemporaryDirectory(prefix="jora-questions-") as name:
        folder = Path(name)
        teaching = Teaching(config, folder, store.cache_dir)
        teaching.write_requests()
        asked = teaching.ask(size)
        made = teaching.write_questions(folder / "questions", size)
        # Of the other requests, which a sample does not make.
        made["counts"].pop("requests_without_an_answer", None)
        rows = read_review(folder / "questions")
    if as_json:
        print_json({"asked": asked, "made": made, "questions": rows})
        return
    for row in rows[:_SHOWN]:
        print(f"[{row['checks'] or 'accepted'}] {row['kind']}: {row['question']}")
        print(f"    {row['answer'] or '(no answer)'}")
    print_made({**made, "asked": asked})


def _not_whole(metrics: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of answers by what was wrong with them, of all runs."""
    return {name: count for name, count in metrics["answers"].items() if name != "ok"}


def print_made(metrics: Mapping[str, Any]) -> None:
    """Print the counts of made and refused questions, and of what the teacher was asked.

    Args:
        metrics: metrics of the stage.
    """
    asked = metrics["asked"]
    left_out = metrics.get("documents", {}).get("left_out", {})
    tables = [
        ("questions of kind", metrics["kinds"]),
        ("refused because", metrics["refused"]),
        ("decided by a person", metrics["decisions"]),
        ("also", metrics["counts"]),
        ("left out", left_out),
        ("lost a part of the text", asked.get("shortened", {})),
        ("answers that are not whole", _not_whole(metrics)),
        ("asked again after", asked["retried"]),
        ("failed for good", asked["failed"]),
    ]
    print_pipeline.print_table(
        ("", "what", "count"),
        [
            (title if number == 0 else "", what.replace("_", " "), f"{count:,}")
            for title, counts in tables
            for number, (what, count) in enumerate(counts.items())
        ],
    )
    found = metrics["round_trip"]["all"]
    if found["questions"]:
        print(
            f"round trip by BM25: the own chunk is the first for {found['recall@1']:.3f}, among the first "
            f"ten for {found['recall@10']:.3f} of {found['questions']:,} questions"
        )
    print(
        f"{asked['answered']:,} of {asked['requests']:,} requests are answered, {asked['asked']:,} of them "
        f"now; {asked['prompt_tokens']:,} tokens of prompts and "
        f"{asked['answer_tokens']:,} of answers in all runs"
    )
