"""What `jora generate` and `jora merge` do: each runs one command of the training core, outside the store."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flows.children.run_child import run_child
from flows.configuration.schema import PipelineConfig
from flows.engine.artifact_store import Store
from flows.engine.errors import one_line_os_errors
from flows.engine.keys import identify
from flows.engine.plan import missing_upstream
from flows.stages import STAGES
from jora_core.base.errors import InputError
from jora_core.specs.answers import AnswerSpec, GenerateSpec
from jora_core.specs.common import ALPACA_SHORT
from jora_core.specs.model_files import ExportSpec

# What an option of `jora generate` may be, said where it is not.
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
    """What `jora generate` is asked, and how to answer; `options` are fields of `AnswerSpec`."""

    instruction: str
    input: str = ""
    model: Path | None = None
    adapter: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def answer_options(
    temperature: float, top_k: int, top_p: float, seed: int, stop: Sequence[str], max_new_tokens: int
) -> dict[str, Any]:
    """Check the options of `jora generate`.

    Args:
        temperature: 0 takes the likeliest token.
        top_k: draw from this many likeliest tokens; 0 draws from all.
        top_p: draw from the fewest tokens of this probability together.
        seed: of the draw.
        stop: texts that end the answer.
        max_new_tokens: of the answer.

    Returns:
        Fields of an `AnswerSpec`.

    Raises:
        InputError: a value that cannot be; it names the option.
    """
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    try:
        AnswerSpec.model_validate({"sampling": sampling, "stop": stop, "max_new_tokens": max_new_tokens})
    except ValidationError as error:
        first = error.errors()[0]
        name = next(str(part) for part in reversed(first["loc"]) if isinstance(part, str))
        option = "--" + name.replace("_", "-")
        raise InputError(f"{option} {first['input']!r}: expected {_EXPECTED[name]}") from None
    return {"sampling": sampling, "stop": list(stop), "max_new_tokens": max_new_tokens}


def generate_answer(
    config: PipelineConfig, prompt: Prompt, on_text: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Answer one prompt: with its model (and adapter), else with the last phase of `config`.

    Args:
        config: its last phase's adapter answers, where `prompt` names no model; dtype, mesh and lengths are
            taken from it.
        prompt: what is asked, and how to answer.
        on_text: gets the pieces of the answer while it is written.

    Returns:
        The core's result: text, finish_reason, prompt_tokens, new_tokens, context_shortened and more.

    Raises:
        InputError: an adapter without its model, or a configuration that was not trained yet.
    """
    if prompt.adapter and not prompt.model:
        raise InputError("--adapter needs --model, the base model that it was trained on")
    store = Store(config.store)
    base, adapter = (prompt.model, prompt.adapter) if prompt.model else _trained(config, store)
    with tempfile.TemporaryDirectory(prefix="jora-generate-") as name:
        folder = Path(name)
        spec = GenerateSpec(
            model=base,
            adapter=adapter,
            instruction=prompt.instruction,
            input=prompt.input,
            prompt_template=ALPACA_SHORT,
            max_seq_len=config.evaluate.max_seq_len,
            stream=on_text is not None,
            mesh=config.mesh,
            dtype=config.model.dtype,
            quantization=config.model.quantization,
            attention=config.model.attention,
            output_dir=folder / "answer",
            compilation_cache_dir=store.cache_dir / "jax" if store.root.exists() else None,
            **prompt.options,
        )
        take = on_text or (lambda text: None)
        return run_child(
            "generate_text",
            spec,
            folder,
            on_line=lambda line: None,
            on_output=lambda line: take(json.loads(line)["text"]),
        )


def _trained(config: PipelineConfig, store: Store) -> tuple[Path, Path]:
    """The base model and the last phase's adapter of a configuration that has been trained."""
    stage = config.phases[-1].stage
    key = identify(config, STAGES, until=stage)[stage].key
    check = store.check(stage, key)
    if not check.whole:
        raise missing_upstream("generate", stage, check)
    return Path(config.model.path), store.path(stage, key)


def merge_adapter(
    base: Path, adapter: Path, target: Path, dtype: str | None = None, then: Sequence[Path] = ()
) -> Path:
    """Merge a PEFT adapter into its base model; write the new model folder `target`, all of it or nothing.

    Args:
        base: model folder in Hugging Face layout.
        adapter: folder in PEFT layout.
        target: new folder.
        dtype: of the merged weights, float32 or bfloat16; None takes the base's.
        then: adapters that are merged after it, in this order.

    Raises:
        InputError: `target` exists, or the model or the adapter cannot be read.
    """
    if dtype not in (None, "float32", "bfloat16"):
        raise InputError(f"--dtype {dtype}: expected float32 or bfloat16")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} exists already; give a new folder")
    with one_line_os_errors("write to", target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        spec = ExportSpec.model_validate(
            {
                "model": base,
                "adapter": adapter,
                "then": list(then),
                "dtype": dtype,
                "output_dir": folder / "export",
            }
        )
        run_child("export", spec, folder)
        with one_line_os_errors("write", target):
            (folder / "export" / "model").rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return target
