"""Drawn answers, ended from outside, are the same on four virtual devices as on one.

This file is also the program that the test runs in a process of its own: the number of virtual devices is
fixed when JAX starts.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jora_core.architecture.model_config import ModelConfig
from jora_core.generation.generate import GenerationSettings, generate
from jora_core.parallel.mesh import make_mesh
from jora_core.parallel.placements import param_shardings
from jora_core.parameters.initialize import init_params
from jora_core.specs.answers import SamplingSpec

MESHES = ((1, 1), (1, 4), (2, 2))
# Windows and soft-caps, fewer key/value heads than devices, a vocabulary that is split.
CONFIG = ModelConfig(
    96,
    32,
    48,
    2,
    4,
    2,
    8,
    family="gemma2",
    activation="gelu_tanh",
    norm_offset=True,
    post_norms=True,
    attention_softcap=2.0,
    logit_softcap=5.0,
    windows=(6, 0),
    tie_embeddings=True,
    initializer_range=0.3,
)
PROMPTS = [np.random.default_rng(n).integers(3, 96, n, dtype=np.int32) for n in (3, 11, 30)]
# Three questions on one context, two on another, and one that stands alone.
CONTEXTS = ["a", "b", "a", "", "a", "b"]
_TEXTS = {
    of: np.random.default_rng(n).integers(3, 96, 40, dtype=np.int32) for n, of in enumerate(["", "a", "b"])
}
SHARING = [
    np.concatenate([_TEXTS[of], prompt])
    for of, prompt in zip(CONTEXTS, [*PROMPTS, *(p[::-1] for p in PROMPTS)], strict=True)
]
SAMPLING = SamplingSpec(temperature=0.9, top_k=40, top_p=0.95, seed=3)
ENOUGH = 5


def compute(data: int, tensor: int) -> dict[str, Any]:
    seen: dict[int, list[list[int]]] = {}

    def watch(place: int, tokens: np.ndarray) -> bool:
        seen.setdefault(place, []).append(tokens.tolist())
        return place == 1 and sum(map(len, seen[place])) >= ENOUGH

    mesh = make_mesh(data, tensor)
    with jax.set_mesh(mesh):
        params = jax.jit(lambda key: init_params(CONFIG, key))(jax.random.key(0))
        params = jax.device_put(params, param_shardings(CONFIG, mesh))
        settings = GenerationSettings(eos_ids=(), max_new_tokens=20, sampling=SAMPLING)
        in_chunks = dataclasses.replace(settings, chunk=4)
        answers = generate(params, CONFIG, PROMPTS, in_chunks, watch=watch)
        # One prompt a batch, and nobody watches.
        one_prompt = dataclasses.replace(settings, tokens_per_batch=1)
        alone = generate(params, CONFIG, PROMPTS, one_prompt)
        contexts = [generate(params, CONFIG, SHARING, settings, contexts=of) for of in (CONTEXTS, None)]
    return {
        "shared": [answer.tolist() for answer in contexts[0]],
        "not shared": [answer.tolist() for answer in contexts[1]],
        "answers": [answer.tolist() for answer in answers],
        "alone": [answer.tolist() for answer in alone],
        "seen": [seen[i] for i in range(len(PROMPTS))],
    }


@pytest.mark.slow  # `test_placements` compares greedy answers
@pytest.mark.timeout(600)
def test_every_mesh_draws_the_same() -> None:
    env = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    one, *others = json.loads(done.stdout)
    assert [len(answer) for answer in one["answers"]] == [20, 5, 20]
    assert [[len(part) for part in parts] for parts in one["seen"]] == [
        [1, 4, 4, 4, 4, 3],
        [1, 4],
        [1, 4, 4, 4, 4, 3],
    ]
    for answer, alone, parts in zip(one["answers"], one["alone"], one["seen"], strict=True):
        assert answer == alone[: len(answer)] == [token for part in parts for token in part]
    assert len({tuple(answer[:5]) for answer in one["answers"]}) == 3
    assert one["shared"] == one["not shared"]
    assert others == [one, one]


if __name__ == "__main__":
    print(json.dumps([compute(*mesh) for mesh in MESHES]))
