"""The command `jora plan`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from flows.commands import print_pipeline
from flows.commands.common_options import Config, Force, From, Json, Only, Set, load, print_json, print_status
from flows.commands.planning.print_memory import print_phases
from flows.commands.planning.sharing_counts import sharing_of_phases
from flows.engine.plan import make_plan
from flows.engine.shared.shared_store import open_store
from flows.stages import STAGES
from flows.stages.questions.ask_teacher import estimate_questions
from flows.teachers.estimate import describe
from flows.teachers.teacher import STAGE as QUESTIONS_STAGE


def plan(
    *,
    config: Config = None,
    only: Only = None,
    start: From = None,
    force: Force = False,
    overrides: Set = None,
    memory: Annotated[bool, typer.Option("--memory")] = False,
    as_json: Json = False,
) -> None:
    """Say per stage whether it would run, and why.

    Also counts the tokens that sharing contexts saves, and what a teacher of questions would be asked. Writes
    nothing.

    Args:
        config: configuration file.
        only: this stage alone.
        start: this stage and those after it.
        force: run even what is up to date.
        overrides: changes of single values of the configuration.
        memory: Also compile each phase's step and print its bytes per device.
        as_json: print JSON instead of text.
    """
    settings = load(config, overrides, ready=True)
    store = open_store(settings)
    lines = make_plan(settings, store, STAGES, only=only, start=start, force=force)
    # Also without --memory, because the counts come from artifacts and caches, if those exist.
    sharing = sharing_of_phases(settings, store, STAGES, lines, print_status)
    asked = None
    if any(line.name == QUESTIONS_STAGE and line.action == "run" for line in lines):
        # Before a cent is spent.
        asked = estimate_questions(settings, store.cache_dir, print_status)
    needs = {}
    if memory:
        # Imported where it is asked for, like all that would slow down a plan.
        from flows.commands.planning.memory_plan import memory_of_phases, with_model_folder

        needs = memory_of_phases(with_model_folder(settings), sharing, print_status)
    if as_json:
        found: dict[str, Any] = {"stages": [asdict(line) for line in lines], "sharing": sharing}
        found |= {} if asked is None else {"questions": asked.as_json()}
        print_json(found | ({"memory": needs} if memory else {}))
        return
    print_pipeline.print_plan(lines)
    if asked is not None:
        print(describe(asked))
    print_pipeline.print_sharing(sharing)
    if memory:
        print_phases(needs)
