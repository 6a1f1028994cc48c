"""One prompt answered: pieces that add up, ends that are told apart, room for the prompt, and the command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from jora_core.base.errors import InputError
from jora_core.commands.generate_text import generate_text, make_prompt
from jora_core.data.prompts.prompt_template import load_template
from jora_core.data.tokenizer import load_tokenizer
from jora_core.specs.answers import GenerateSpec, PredictSpec
from jora_core.specs.prompts.settings import PromptSpec


@pytest.fixture()
def order(tiny_weights: Path, tmp_path: Path, program_cache: Path) -> dict[str, Any]:
    (tmp_path / "out").mkdir()
    return {
        "model": str(tiny_weights),
        "instruction": "Say it.",
        "input": "lamp river\ncopper\n\nseven?",
        "max_new_tokens": 12,
        "max_seq_len": 192,
        "sampling": {"temperature": 1.5, "seed": 4},
        "output_dir": str(tmp_path / "out"),
        "compilation_cache_dir": str(program_cache),
    }


def answer(order: dict[str, Any], **changes: Any) -> tuple[list[str], dict[str, Any]]:
    pieces: list[str] = []
    result = generate_text(GenerateSpec.model_validate(order | changes), pieces.append)
    assert json.loads((Path(order["output_dir"]) / "result.json").read_text()) == result
    assert "".join(pieces) == result["text"] and all(pieces)
    return pieces, result


def test_pieces_ends_and_stop_strings(order: dict[str, Any], tiny_weights: Path, tmp_path: Path) -> None:
    pieces, whole = answer(order)
    assert len(pieces) > 2, "as it comes"
    assert (whole["finish_reason"], whole["new_tokens"], whole["context_shortened"]) == ("length", 12, False)
    tokenizer = load_tokenizer(tiny_weights)
    template = load_template(PromptSpec(), tokenizer)
    assert whole["prompt_tokens"] == len(
        make_prompt(GenerateSpec.model_validate(order), tokenizer, template)[0]
    )
    at_once, same = answer(order, stream=False)
    assert same["text"] == whole["text"] and len(at_once) < len(pieces)
    stop = next(whole["text"][i : i + 2] for i in range(2, 8) if "\ufffd" not in whole["text"][i : i + 2])
    for stream in (True, False):
        _, cut = answer(order, stop=["never", stop], stream=stream)
        assert cut["text"] == whole["text"][: whole["text"].index(stop)]
        assert cut["finish_reason"] == "stop" and cut["new_tokens"] < 12
    _, other = answer(order, sampling={"temperature": 1.5, "seed": 5})
    assert other["text"] != whole["text"]


def test_an_end_token_ends_it(order: dict[str, Any], tiny_weights: Path, tmp_path: Path) -> None:
    import shutil

    model = tmp_path / "model"
    shutil.copytree(tiny_weights, model)
    # All but the special tokens and a few letters end an answer: the next token is one of them.
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(2, 300))}))
    _, result = answer(order, model=str(model), sampling={})
    assert result["finish_reason"] == "end" and result["new_tokens"] < 12
    _, held = answer(order, model=str(model), sampling={}, min_new_tokens=12)
    assert (held["finish_reason"], held["new_tokens"]) == ("length", 12)


def test_the_prompt_gives_way_to_the_answer(order: dict[str, Any], tiny_weights: Path) -> None:
    tokenizer = load_tokenizer(tiny_weights)
    template = load_template(PromptSpec(), tokenizer)
    full, shortened = make_prompt(GenerateSpec.model_validate(order), tokenizer, template)
    assert not shortened and len(full) > 30
    spec = GenerateSpec.model_validate(order | {"max_seq_len": len(full) + 12 - 4})
    cut, shortened = make_prompt(spec, tokenizer, template)
    assert shortened and len(cut) <= len(full) - 4 and "seven?" in tokenizer.decode(cut.tolist())
    with pytest.raises(InputError, match="max_new_tokens=12 leaves no room for a prompt in max_seq_len=12"):
        make_prompt(GenerateSpec.model_validate(order | {"max_seq_len": 12}), tokenizer, template)


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling": {"temperature": -0.1}},
        {"sampling": {"top_p": 0}},
        {"sampling": {"top_p": 1.01}},
        {"sampling": {"top_k": -1}},
        {"sampling": {"seed": 2**32}},
        {"stop": ["a", ""]},
        {"max_new_tokens": 0},
        {"min_new_tokens": 13},
    ],
)
def test_orders_that_cannot_be(order: dict[str, Any], changes: dict[str, Any]) -> None:
    records = {"systems": {"base": None}, "records": "r.parquet"}
    GenerateSpec.model_validate(order)
    with pytest.raises(ValidationError):
        GenerateSpec.model_validate(order | changes)
    with pytest.raises(ValidationError):
        PredictSpec.model_validate(
            {"model": "m", "output_dir": "o", "max_new_tokens": 12, **records, **changes}
        )


def test_command(order: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(order))
    command = [
        sys.executable,
        "-m",
        "jora_core.commands.generate_text",
        "--spec",
        str(tmp_path / "spec.json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert all(list(line) == ["text"] for line in lines) and len(lines) > 2
    assert "".join(line["text"] for line in lines) == result["text"]
