"""Answer one prompt, and write the answer's text while it is generated.

``python -m jora_core.commands.generate_text --spec FILE`` writes a line of JSON, ``{"text": "..."}``, to
standard output for each piece of text. ``result.json`` holds the whole text, the reason for its end (``end``
token, ``stop`` string or ``length``), the number of tokens, and the seconds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jora_core.base.atomic_files import write_json
from jora_core.base.errors import InputError
from jora_core.commands.run_command import run_command
from jora_core.data.prompts.prompt_template import PromptTemplate, load_template
from jora_core.data.prompts.shortening import shorten_prompt
from jora_core.data.tokenizer import TextTokenizer, end_tokens, load_tokenizer
from jora_core.generation.generate import CHUNK, GenerationSettings, generate
from jora_core.generation.text_stream import TextStream
from jora_core.model.projections import frozen_type
from jora_core.parallel.devices import peak_memory_bytes
from jora_core.parallel.mesh import mesh_of_one_process
from jora_core.parameters.trees import reads_weights
from jora_core.specs.answers import GenerateSpec
from jora_core.weights.adapter_folder import read_adapter
from jora_core.weights.load_params import load_params
from jora_core.weights.model_folder import read_model


def generate_text(spec: GenerateSpec, on_text: Callable[[str], None]) -> dict[str, Any]:
    """Generate the answer to one prompt.

    Args:
        spec: the prompt, the model, and the settings of the answer.
        on_text: called with each piece of text that later tokens cannot change; with `spec.stream`, checked
            after every token.

    Returns:
        The content of ``result.json``.

    Raises:
        InputError: the model or the adapter cannot be used, or the longest answer leaves no token for the
            prompt.
    """
    config = read_model(spec.model)
    tokenizer = load_tokenizer(spec.model, config.vocab_size)
    template = load_template(spec.prompt, tokenizer)
    prompt, shortened = make_prompt(spec, tokenizer, template)
    text = TextStream(tokenizer, spec.stop)

    def give(piece: str) -> None:
        if piece:
            on_text(piece)

    def watch(_: int, tokens: np.ndarray) -> bool:
        give(text.add(tokens))
        return text.stopped

    mesh = mesh_of_one_process(spec.mesh.data, spec.mesh.tensor)
    with jax.set_mesh(mesh), jax.default_matmul_precision(spec.matmul_precision):
        adapter = read_adapter(spec.adapter, config, mesh)
        kept = frozen_type(spec.dtype, exact=reads_weights(adapter))
        params = load_params(spec.model, config, jnp.dtype(spec.dtype), mesh, spec.quantization, kept)
        # Loading is not counted: the time is that of the answer.
        began = time.perf_counter()
        (answer,) = generate(
            params,
            config,
            [prompt],
            GenerationSettings(
                eos_ids=end_tokens(spec.model, config, tokenizer, template.end_id),
                max_new_tokens=spec.max_new_tokens,
                min_new_tokens=spec.min_new_tokens,
                sampling=spec.sampling,
                # One prompt: the batch is one row of the longest length.
                tokens_per_batch=spec.max_seq_len,
                # A chunk is one call of the device. One token a call is slower, but its text can be shown at
                # once.
                chunk=1 if spec.stream else CHUNK,
                attention=spec.attention,
            ),
            adapter=adapter,
            watch=watch,
        )
    give(text.finish())
    ended = "length" if len(answer) == spec.max_new_tokens else "end"
    result = {
        "text": text.text,
        # A stop string in the last token has priority, because the text is cut there.
        "finish_reason": "stop" if text.stopped else ended,
        "prompt_tokens": len(prompt),
        "new_tokens": text.tokens,
        "context_shortened": shortened,
        "prompt_template": template.name,
        "seconds": round(time.perf_counter() - began, 3),
        "peak_memory_bytes": peak_memory_bytes(),
    }
    write_json(spec.output_dir / "result.json", result)
    return result


def make_prompt(
    spec: GenerateSpec, tokenizer: TextTokenizer, template: PromptTemplate
) -> tuple[np.ndarray, bool]:
    """Return the prompt's tokens int32 [T], and whether the context was cut to make the prompt fit.

    Args:
        spec: the prompt and `max_seq_len`.
        tokenizer: the model's.
        template: the template of all prompts.

    Raises:
        InputError: the longest answer leaves no token for a prompt.
    """
    # The answer shares the row with its prompt, so its longest length is reserved.
    room = spec.max_seq_len - len(template.bos) - spec.max_new_tokens
    if room < 1:
        raise InputError(
            f"max_new_tokens={spec.max_new_tokens} leaves no room for a prompt in max_seq_len="
            f"{spec.max_seq_len}; lower the first or raise the second"
        )
    prompt = tokenizer.encode(template.prompt(spec.instruction, spec.input))
    shortened = len(prompt) > room
    if shortened:
        prompt = shorten_prompt(tokenizer, template, spec.instruction, spec.input, room)
    return np.concatenate([template.bos, prompt]), shortened


def _main(spec: GenerateSpec) -> None:
    # What libraries print to standard output goes to standard error: it must not come between the lines.
    lines = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def write_line(piece: str) -> None:
        # JSON, because a piece of text may hold line breaks; flushed, because a reader waits for each piece.
        print(json.dumps({"text": piece}), file=lines, flush=True)

    generate_text(spec, write_line)


if __name__ == "__main__":
    run_command(GenerateSpec, _main)
