"""The command `jora generate`, which answers one prompt in a child process, outside the store."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from flows.children.run_child import run_child
from flows.commands.common_options import Set, load, print_json, print_status, read_stdin, require_utf8
from flows.configuration.fetched_models import MODELS
from flows.configuration.hub_models import fetched_folder, models_cache
from flows.configuration.prompts import prompt_spec
from flows.configuration.schema import PipelineConfig
from flows.engine.artifact_store import Store
from flows.engine.keys import identify
from flows.engine.plan import missing_upstream
from flows.engine.shared.shared_store import open_store
from flows.stages import STAGES
from flows.stages.converted_model import converted
from flows.stages.model_conversion import converted_folder
from jora_core.base.errors import InputError
from jora_core.specs.answers import AnswerSpec, GenerateSpec
from jora_core.specs.common import ComputeSettings, values_of
from jora_core.specs.model_sources import source_kind

# Valid values of the options of `jora generate`, for errors about wrong values.
_EXPECTED = {
    "temperature": "0 (the likeliest token) or a greater number, such as 0.7",
    "top_k": "0 (all tokens) or a greater whole number, such as 50",
    "top_p": "more than 0 and at most 1, such as 0.9",
    "seed": "a whole number from 0 to 4294967295",
    "stop": "at least one character; leave the option out for no stop string",
    "max_new_tokens": "1 or a greater whole number",
}


@dataclass(frozen=True)
class Prompt:
    """One prompt for `jora generate`.

    Attributes:
        instruction: the task of the prompt.
        input: the input of the task, context first.
        model: base model of any layout; None takes the model of the configuration.
        adapter: adapter folder; None takes the last phase's, or no adapter with `model`.
        options: further fields of `AnswerSpec`.
    """

    instruction: str
    input: str = ""
    model: Path | None = None
    adapter: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def generate(
    *,
    instruction: Annotated[str, typer.Option("--instruction", "-i")],
    text: Annotated[str, typer.Option("--input", "-t")] = "",
    config: Annotated[Path | None, typer.Option("--config", "-c")] = None,
    overrides: Set = None,
    model: Annotated[Path | None, typer.Option("--model")] = None,
    adapter: Annotated[Path | None, typer.Option("--adapter")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens")] = 64,
    temperature: Annotated[float, typer.Option("--temperature")] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p")] = 1.0,
    top_k: Annotated[int, typer.Option("--top-k")] = 0,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    stop: Annotated[list[str] | None, typer.Option("--stop", metavar="TEXT")] = None,
    stream: Annotated[bool, typer.Option("--stream/--no-stream")] = True,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Answer one prompt.

    The fine-tuned model of CONFIG answers, or any model with any adapter. Without a temperature the answer is
    always the same. It ends at an end token, at a stop text or after --max-new-tokens.

    \b
    Examples:
      jora generate -i "Answer the question from the documents." -t - < prompt.txt
      jora generate -i "Write a title." -t "$(cat post.txt)" --temperature 0.8 --top-p 0.9 --seed 7
      jora generate -i "List three towns." --model my-model --stop "4." --json

    Args:
        instruction: The task for the model.
        text: Input of the task, context first; `-` reads standard input.
        config: YAML file; without it, ./jora.yaml, else a checkout's sample.
        overrides: changes of single values of the configuration.
        model: Model folder or GGUF file instead of CONFIG's, or a name of `jora fetch`.
        adapter: PEFT folder instead of the last phase's; only with --model.
        max_new_tokens: Largest number of tokens in the answer.
        temperature: 0 takes the likeliest token; about 0.7 varies the answer; above 1 is often incoherent.
        top_p: Draw from the likeliest tokens with this total probability, after top-k.
        top_k: Draw from this many likeliest tokens; 0 draws from all.
        seed: Seed of the draw, for a temperature above 0.
        stop: End the answer before this text; repeatable.
        stream: Print the text while it is written, or at its end.
        as_json: Print the text, the reason of its end and token counts as JSON.
    """
    require_utf8({"--instruction": instruction, "--model": model, "--adapter": adapter})
    for one in stop or []:
        require_utf8({"--stop": one})
    options = answer_options(temperature, top_k, top_p, seed, stop or [], max_new_tokens)
    settings = load(config, overrides)
    # After the check of the options, so that a wrong option fails before the user types a long text.
    source = read_stdin() if text == "-" else text
    require_utf8({"--input": source})
    prompt = Prompt(instruction, source, model, adapter, options)
    shown = stream and not as_json
    result = generate_answer(settings, prompt, _print_piece if shown else None)
    if result["context_shortened"]:
        print_status(
            f"note: the input was shortened to fit {settings.evaluate.max_seq_len} tokens with the answer "
            "(evaluate.max_seq_len)"
        )
    if as_json:
        print_json(result)
    else:
        print("" if shown else result["text"])


def answer_options(
    temperature: float, top_k: int, top_p: float, seed: int, stop: Sequence[str], max_new_tokens: int
) -> dict[str, Any]:
    """Check the sampling options of `jora generate`.

    Args:
        temperature: divisor of the logits; 0 takes the likeliest token.
        top_k: number of the likeliest tokens to draw from; 0 draws from all.
        top_p: total probability of the likeliest tokens to draw from; 1 draws from all.
        seed: seed of the draw.
        stop: texts that end the answer.
        max_new_tokens: largest number of tokens in the answer.

    Returns:
        Fields of an `AnswerSpec`.

    Raises:
        InputError: a value is not valid. The message names the option.
    """
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    try:
        AnswerSpec.model_validate({"sampling": sampling, "stop": stop, "max_new_tokens": max_new_tokens})
    except ValidationError as error:
        # `loc` is like ('sampling', 'top_p') or ('stop', 0): the last name in it is the option's.
        first = error.errors()[0]
        name = next(str(part) for part in reversed(first["loc"]) if isinstance(part, str))
        option = "--" + name.replace("_", "-")
        raise InputError(f"{option} {first['input']!r}: expected {_EXPECTED[name]}") from None
    return {"sampling": sampling, "stop": list(stop), "max_new_tokens": max_new_tokens}


def generate_answer(
    config: PipelineConfig, prompt: Prompt, on_text: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Answer one prompt with the model of the prompt, or else with the trained model of `config`.

    Args:
        config: configuration with dtype, mesh and lengths. If `prompt` names no model, the base model with
            the adapter of the last phase answers.
        prompt: the prompt and its options.
        on_text: called with each piece of the answer while the child generates it.

    Returns:
        The result of the training core: text, finish_reason, prompt_tokens, new_tokens, context_shortened and
        more.

    Raises:
        InputError: `prompt` has an adapter without a model, or `config` is not trained yet.
    """
    if prompt.adapter and not prompt.model:
        raise InputError("--adapter needs --model, the base model that it was trained on")
    store = open_store(config)
    with tempfile.TemporaryDirectory(prefix="jora-generate-") as name:
        folder = Path(name)
        if prompt.model:
            base, adapter = model_folder(prompt.model, folder), prompt.adapter
        else:
            base, adapter = _trained(config, store)
        spec = GenerateSpec(
            model=base,
            adapter=adapter,
            instruction=prompt.instruction,
            input=prompt.input,
            prompt=prompt_spec(config),
            max_seq_len=config.evaluate.max_seq_len,
            stream=on_text is not None,
            mesh=config.mesh,
            **values_of(ComputeSettings, config.model),
            output_dir=folder / "answer",
            # A missing store is not created just to answer a prompt; the user's cache takes its place.
            compilation_cache_dir=(store.cache_dir if store.root.exists() else models_cache().parent) / "jax",
            **prompt.options,
        )
        take = on_text or (lambda text: None)
        return run_child(
            "generate_text",
            spec,
            folder,
            # Progress and log lines would mix with the answer on a terminal.
            on_line=lambda line: None,
            on_output=lambda line: take(json.loads(line)["text"]),
        )


def model_folder(model: Path, work_dir: Path) -> Path:
    """Return the folder of a model that is given on the command line, also by a name that `jora fetch` knows.

    Args:
        model: model of any layout; one that is no model folder is converted once into the cache.
        work_dir: folder for the files of a conversion.

    Raises:
        InputError: the model is not fetched yet, is not there, or cannot be converted.
    """
    name = str(model)
    if name in MODELS and not model.exists():
        model = fetched_folder(name)
        if not model.is_dir():
            raise InputError(f"--model: {name} is not fetched yet; run `jora fetch {name}`")
    if source_kind(model) != "folder" and not model.exists():
        raise InputError(f"--model: there is no file {model}")
    return converted_folder(model, models_cache() / "converted", work_dir, print_status)


def _trained(config: PipelineConfig, store: Store) -> tuple[Path, Path]:
    """Return the base model and the last phase's adapter of a trained configuration."""
    stage = config.phases[-1].stage
    # Under the current key, because an adapter of older settings or data must not answer unnoticed.
    identity = identify(config, STAGES, until=stage)[stage]
    store.fetch(stage, identity.key)
    check = store.check(stage, identity.key)
    if not check.whole:
        raise missing_upstream("generate", identity, {stage: check}, config, store)
    return Path(converted(config, store, STAGES).model.path), store.path(stage, identity.key)


def _print_piece(text: str) -> None:
    print(text, end="", flush=True)
