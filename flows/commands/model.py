"""Commands of `jora` about one model, outside of the pipeline: generate, merge, memory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.app import Config, Json, Set, app, load, print_json, say


@app.command()
def generate(
    *,
    instruction: Annotated[str, typer.Option("--instruction", "-i", help="What to do.")],
    text: Annotated[
        str,
        typer.Option("--input", "-t", help="What to do it with, context first; `-` reads standard input."),
    ] = "",
    config: Annotated[Path | None, typer.Option("--config", "-c", help="YAML file; else the sample.")] = None,
    overrides: Set = None,
    model: Annotated[Path | None, typer.Option("--model", help="Model folder instead of CONFIG's.")] = None,
    adapter: Annotated[
        Path | None,
        typer.Option("--adapter", help="PEFT folder instead of the last phase's; only with --model."),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", help="Longest answer; it may end before.")
    ] = 64,
    temperature: Annotated[
        float,
        typer.Option(
            "--temperature", help="0 writes the likeliest token; around 0.7 varies; above 1 gets wild."
        ),
    ] = 0.0,
    top_p: Annotated[
        float,
        typer.Option(
            "--top-p", help="Draw from the fewest tokens of this probability together, after top-k."
        ),
    ] = 1.0,
    top_k: Annotated[
        int, typer.Option("--top-k", help="Draw from this many likeliest tokens; 0 draws from all.")
    ] = 0,
    seed: Annotated[
        int, typer.Option("--seed", help="Equal seeds draw equal answers; for a temperature above 0.")
    ] = 0,
    stop: Annotated[
        list[str] | None,
        typer.Option("--stop", metavar="TEXT", help="End the answer before this text; repeatable."),
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream/--no-stream", help="Print the text while it is written, or at its end.")
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print text, why it ended and token counts as JSON, at the end.")
    ] = False,
) -> None:
    """Answer one prompt.

    With the fine-tuned model of CONFIG, or with any model and adapter. Without a temperature the answer is
    always the same; an end token, a stop text or --max-new-tokens ends it.

    \b
    Examples:
      jora generate -i "Answer the question from the documents." -t - < prompt.txt
      jora generate -i "Write a title." -t "$(cat post.txt)" --temperature 0.8 --top-p 0.9 --seed 7
      jora generate -i "List three towns." --model my-model --stop "4." --json
    """
    from flows.commands.generate_and_merge import Prompt, answer_options, generate_answer

    options = answer_options(temperature, top_k, top_p, seed, stop or [], max_new_tokens)
    settings = load(config, overrides)
    source = sys.stdin.read() if text == "-" else text
    prompt = Prompt(instruction, source, model, adapter, options)
    shown = stream and not as_json
    result = generate_answer(settings, prompt, _print_piece if shown else None)
    if as_json:
        print_json(result)
    else:
        print("" if shown else result["text"])


@app.command()
def merge(
    huggingface_path: Annotated[Path, typer.Argument(help="Base model folder in Hugging Face layout.")],
    jax_path: Annotated[Path, typer.Argument(help="Adapter folder that training wrote (PEFT layout).")],
    save_path: Annotated[Path, typer.Argument(help="New folder of the merged model.")],
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32 or bfloat16; else as the base.")
    ] = None,
    then: Annotated[
        list[Path] | None,
        typer.Option("--then", metavar="ADAPTER", help="Another adapter, merged after it; repeatable."),
    ] = None,
) -> None:
    """Merge an adapter, or several in order, into its base model.

    The new folder is in Hugging Face layout; `transformers` loads it.
    """
    from flows.commands.generate_and_merge import merge_adapter

    print(merge_adapter(huggingface_path, jax_path, save_path, dtype, then or []))


@app.command()
def memory(
    *,
    config: Config = None,
    model: Annotated[
        Path | None, typer.Option("--model", help="Model folder or config.json, instead of CONFIG.")
    ] = None,
    data: Annotated[int | None, typer.Option("--data", min=1, help="Devices that split the batch.")] = None,
    tensor: Annotated[
        int | None, typer.Option("--tensor", min=1, help="Devices that split a weight.")
    ] = None,
    seq_len: Annotated[int | None, typer.Option("--seq-len", min=8, help="Tokens of a row.")] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Rows of a microbatch, over all devices.")
    ] = None,
    tokens_per_batch: Annotated[
        int | None, typer.Option("--tokens-per-batch", min=8, help="Instead of --batch.")
    ] = None,
    answer_tokens: Annotated[
        int | None, typer.Option("--answer-tokens", min=1, help="Supervised tokens a row; else an eighth.")
    ] = None,
    remat: Annotated[
        str | None, typer.Option("--remat", help="What is computed again, as phases.N.remat.")
    ] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="Of the base: float32 or bfloat16.")] = None,
    quantization: Annotated[
        str | None, typer.Option("--quantization", help="Of the base: none, int8 or nf4.")
    ] = None,
    lora_r: Annotated[int | None, typer.Option("--lora-r", min=1, help="Rank of the adapter.")] = None,
    lora_targets: Annotated[
        str | None, typer.Option("--lora-targets", help="Projections with an adapter, by commas.")
    ] = None,
    card: Annotated[int | None, typer.Option("--card", help="GB of the card: 24, 40, 48, 80 or 141.")] = None,
    target: Annotated[
        str | None, typer.Option("--target", help="Compiler: auto, cuda, host or cpu (see docs/memory.md).")
    ] = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Say what a training step takes on each device.

    Before there is one: compiles the real step for the real mesh from config.json alone. Bytes by kind, which
    cards it fits, the longest row, collectives, arithmetic. Without --model: the phase of CONFIG with the
    largest microbatch.

    \b
    Example:
      jora memory --model config.json --tensor 4 --seq-len 4096 --card 80
    """
    from flows.commands.memory_plan import memory_plan, memory_settings
    from flows.commands.print_memory import print_memory

    if model is not None and config is not None:
        from jora_core.base.errors import InputError

        raise InputError("give CONFIG or --model, not both")
    given = {
        "data": data,
        "tensor": tensor,
        "seq_len": seq_len,
        "rows": batch,
        "tokens_per_batch": tokens_per_batch,
        "answer_tokens": answer_tokens,
        "remat": remat,
        "dtype": dtype,
        "quantization": quantization,
        "r": lora_r,
        "target_modules": lora_targets.split(",") if lora_targets else None,
        "card": card,
        "target": target,
    }
    settings = memory_settings(None if model else load(config, overrides), model, given)
    plan = memory_plan(settings, say)
    if as_json:
        print_json(plan)
    else:
        print_memory(plan)


def _print_piece(text: str) -> None:
    print(text, end="", flush=True)
