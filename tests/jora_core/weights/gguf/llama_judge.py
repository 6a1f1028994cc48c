"""llama.cpp itself, as the independent reader of written GGUF files.

The package xllamacpp (extra `dev`) has llama.cpp compiled in its wheels, so nothing is built here. It offers
the server of llama.cpp, in this process: texts become tokens, and tokens become the next ones with the
log-probabilities of the whole vocabulary.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

xllamacpp: Any = pytest.importorskip(
    "xllamacpp", reason="xllamacpp, which holds llama.cpp, is not installed: pip install -e '.[dev]'"
)
_CONTEXT = 512
_SECONDS = 600


@dataclass(frozen=True)
class LlamaCpp:
    """A GGUF file as llama.cpp has it open, behind an address of this machine."""

    address: str

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text. Control tokens in it are text."""
        body = {"content": text, "add_special": False, "parse_special": False}
        return self._post("/tokenize", body)["tokens"]

    def greedy(self, prompt: np.ndarray, count: int) -> list[int]:
        """Return the next tokens, each the most likely one; fewer than `count` if an end token comes."""
        return self._complete(prompt, count)["tokens"]

    def log_probabilities(self, prompt: np.ndarray, vocab_size: int) -> np.ndarray:
        """Return the logarithm of the probability of each token [V] as the next one."""
        # The server tells no probabilities beside an end token or a part of a character. So a letter is
        # chosen; the probabilities are those before such a choice.
        letter = {"logit_bias": [[self.tokenize("a")[0], 1000]]}
        (step,) = self._complete(prompt, 1, n_probs=vocab_size, **letter)["completion_probabilities"]
        found = np.full(vocab_size, np.nan)
        for each in step["top_logprobs"]:
            found[each["id"]] = each["logprob"]
        return found

    def _complete(self, prompt: np.ndarray, count: int, **more: Any) -> dict[str, Any]:
        body = {"prompt": prompt.tolist(), "n_predict": count, "temperature": 0, **more}
        # Without its cache: a prompt that is computed in other parts gives other last bits.
        return self._post("/completion", body | {"return_tokens": True, "cache_prompt": False})

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.address + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            return json.loads(answer.read())


@contextmanager
def open_llama(path: Path) -> Iterator[LlamaCpp]:
    """Let llama.cpp load a file, as exactly as it computes.

    Args:
        path: the GGUF file.
    """
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.n_gpu_layers = _CONTEXT, 1, 0
    params.warmup, params.verbosity = False, -1
    # Keys and values in float32: in float16, the default, greedy tokens differ after some dozens.
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    try:
        yield LlamaCpp(server.listening_address)
    finally:
        del server  # which stops its threads
