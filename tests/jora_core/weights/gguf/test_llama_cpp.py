"""Written GGUF files as llama.cpp itself computes them.

llama-cpp-python is no dependency: it compiles llama.cpp for minutes. Where it is installed, such as by
`pip install --target FOLDER llama-cpp-python` with FOLDER in PYTHONPATH, it is an independent judge.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.commands.models.fetch import fetch_model
from flows.configuration.fetched_models import MODELS
from jora_core.architecture.model_config import ModelConfig
from jora_core.base.errors import InputError
from jora_core.data.tokenizer import load_tokenizer
from jora_core.generation.generate import GenerationSettings, generate
from jora_core.weights.gguf.write_gguf import write_gguf
from jora_core.weights.load_params import load_params
from jora_core.weights.model_folder import read_model
from tests.jora_core.weights.gguf.gguf_cases import QUICK_CASES, TEXTS, make_folder

llama_cpp: Any = pytest.importorskip(
    "llama_cpp", reason="llama-cpp-python is not installed; see the head of this file"
)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
_FLOAT32 = 0  # number of the type in ggml


def open_llama(path: Path) -> Any:
    # Keys and values in float32: in float16, the default, greedy tokens differ after some dozens.
    return llama_cpp.Llama(
        str(path), n_ctx=512, n_gpu_layers=0, verbose=False, type_k=_FLOAT32, type_v=_FLOAT32
    )


def greedy(llama: Any, prompt: np.ndarray, count: int) -> list[int]:
    """The next tokens by llama.cpp, each the one of the largest logit."""
    llama.reset()
    llama.eval(prompt.tolist())
    found: list[int] = []
    while len(found) < count:
        logits = np.ctypeslib.as_array(
            llama_cpp.llama_get_logits_ith(llama.ctx, -1), shape=(llama.n_vocab(),)
        )
        found.append(int(np.argmax(logits)))
        llama.eval(found[-1:])
    return found


def assert_same(folder: Path, path: Path, texts: list[str], count: int) -> None:
    config = read_model(folder)
    tokenizer, llama = load_tokenizer(folder, config.vocab_size), open_llama(path)
    params = load_params(folder, config)
    for text in texts:
        ids = tokenizer.encode(text)
        assert llama.tokenize(text.encode(), add_bos=False, special=False) == ids.tolist(), text
        settings = GenerationSettings(eos_ids=(), max_new_tokens=count)
        (expected,) = generate(params, config, [ids], settings)
        assert greedy(llama, ids, count) == expected.tolist(), text


@pytest.mark.parametrize("case", QUICK_CASES)
def test_tiny_models(case: str, tmp_path: Path) -> None:
    make_folder(tmp_path / "hf", case)
    write_gguf(tmp_path / "hf", ModelConfig.from_hf(tmp_path / "hf"), tmp_path / "f32.gguf", "f32", "tiny")
    assert_same(tmp_path / "hf", tmp_path / "f32.gguf", TEXTS, 20)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_real_models(name: str, tmp_path: Path) -> None:
    """The folder of a fetched model, written as GGUF again."""
    try:
        folder = fetch_model(name)
    except InputError as error:
        pytest.skip(str(error))
    write_gguf(folder, read_model(folder), tmp_path / "f32.gguf", "f32", name)
    texts = ["The capital of France is", "Привет, мир 42", "def f(x):\n    return x**2\n"]
    assert_same(folder, tmp_path / "f32.gguf", texts, 60)
