"""Answer one prompt, and give its text out while it comes.

``python -m jora_core.commands.generate_text --spec FILE`` writes a line of JSON to standard output for each
piece of text, ``{"text": "..."}``, and ``result.json`` with all of it: text, why it ended
(``end`` token, ``stop`` string or ``length``), tokens, seconds.
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

from jora_core.architecture.model_config import ModelConfig
from jora_core.base.atomic_files import write_json
from jora_core.base.errors import InputError
from jora_core.commands.run_command import run_command
from jora_core.data.prompts import fill_template, shorten_prompt
from jora_core.data.tokenizer import TextTokenizer, end_tokens, load_tokenizer
from jora_core.generation.generate import CHUNK, generate
from jora_core.generation.text_stream import TextStream
from jora_core.parallel.devices import peak_memory_bytes
from jora_core.parallel.mesh import make_mesh
from jora_core.specs.answers import GenerateSpec
from jora_core.weights.adapter_folder import read_adapter
from jora_core.weights.load_params import load_params


def generate_text(spec: GenerateSpec, on_text: Callable[[str], None]) -> dict[str, Any]:
    """Write one answer; `on_text` gets its pieces, one a token where `spec.stream`, as soon as they are sure.

    Returns:
        What ``result.json`` says.

    Raises:
        InputError: the model or the adapter cannot be used, or there is no room for a prompt.
    """
    config = ModelConfig.from_hf(spec.model)
    tokenizer = load_tokenizer(spec.model, config.vocab_size)
    prompt, shortened = make_prompt(spec, tokenizer)
    text = TextStream(tokenizer, spec.stop)

    def give(piece: str) -> None:
        if piece:
            on_text(piece)

    def watch(_: int, tokens: np.ndarray) -> bool:
        give(text.add(tokens))
        return text.stopped

    mesh = make_mesh(spec.mesh.data, spec.mesh.tensor)
    with jax.set_mesh(mesh):
        adapter = read_adapter(spec.adapter, config, mesh)
        params = load_params(spec.model, config, jnp.dtype(spec.dtype), mesh, spec.quantization)
        began = time.perf_counter()
        (answer,) = generate(
            params,
            config,
            [prompt],
            eos_ids=end_tokens(spec.model, config, tokenizer),
            max_new_tokens=spec.max_new_tokens,
            min_new_tokens=spec.min_new_tokens,
            tokens_per_batch=spec.max_seq_len,
            attention=spec.attention,
            adapter=adapter,
            sampling=spec.sampling,
            watch=watch,
            chunk=1 if spec.stream else CHUNK,
        )
    give(text.finish())
    ended = "length" if len(answer) == spec.max_new_tokens else "end"
    result = {
        "text": text.text,
        "finish_reason": "stop" if text.stopped else ended,
        "prompt_tokens": len(prompt),
        "new_tokens": text.tokens,
        "context_shortened": shortened,
        "seconds": round(time.perf_counter() - began, 3),
        "peak_memory_bytes": peak_memory_bytes(),
    }
    write_json(spec.output_dir / "result.json", result)
    return result


def make_prompt(spec: GenerateSpec, tokenizer: TextTokenizer) -> tuple[np.ndarray, bool]:
    """Tokens int32 [T] of the prompt, and whether its context had to be cut to leave room for the answer.

    Raises:
        InputError: the longest answer leaves no room.
    """
    bos = np.asarray([] if tokenizer.bos_id is None else [tokenizer.bos_id], np.int32)
    room = spec.max_seq_len - len(bos) - spec.max_new_tokens
    if room < 1:
        raise InputError(
            f"max_new_tokens={spec.max_new_tokens} leaves no room for a prompt in max_seq_len="
            f"{spec.max_seq_len}; lower the first or raise the second"
        )
    prompt = tokenizer.encode(fill_template(spec.prompt_template, spec.instruction, spec.input))
    shortened = len(prompt) > room
    if shortened:
        prompt = shorten_prompt(tokenizer, spec.prompt_template, spec.instruction, spec.input, room)
    return np.concatenate([bos, prompt]), shortened


def _main(spec: GenerateSpec) -> None:
    # What libraries print must not come between the lines.
    lines = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def write_line(piece: str) -> None:
        print(json.dumps({"text": piece}), file=lines, flush=True)

    generate_text(spec, write_line)


if __name__ == "__main__":
    run_command(GenerateSpec, _main)
