"""The command `jora watch`, which notices changed data."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from flows.commands.common_options import Config, Set, load, print_status
from flows.housekeeping.data_watch import Watch
from flows.orchestration import run_pipeline
from flows.orchestration.notifications import DATA_CHANGED, emit_data_changed
from retrieval.build.inputs import input_files


def watch(
    config: Config = None,
    overrides: Set = None,
    every: Annotated[float, typer.Option("--every", metavar="SECONDS", min=0.1)] = 30.0,
    settle: Annotated[float, typer.Option("--settle", metavar="SECONDS", min=0)] = 60.0,
    run: Annotated[bool, typer.Option("--run")] = False,
    once: Annotated[bool, typer.Option("--once")] = False,
) -> None:
    """Wait for changed data.

    Looks at the sources of CONFIG (files, folders, globs and URLs). When files have changed and have stopped
    growing, it prints what changed and emits the event `raft.data.changed` to the Prefect server that
    answers. With --run it also runs the pipeline. Changes during a run become one run after it.

    Args:
        config: configuration file.
        overrides: changes of single values of the configuration.
        every: Seconds between two looks.
        settle: Seconds without a change after which files count as complete.
        run: Run the pipeline after a change.
        once: End after the first change.
    """
    settings = load(config, overrides, ready=run)
    watched = Watch(lambda: dict(input_files(settings.context)), settle)
    print_status(f"watching the sources of {settings.project}; Ctrl-C ends this")
    while True:
        time.sleep(every)
        changes = watched.poll()
        if changes is None:
            continue
        print(changes.in_words(), flush=True)
        url = emit_data_changed(settings, changes)
        print_status(
            f"event {DATA_CHANGED} sent to {url}" if url else "no Prefect server answers; no event sent"
        )
        if run:
            run_pipeline.run(settings, say=print_status)
        if once:
            return
