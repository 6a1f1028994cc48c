"""Every number of an adapter against peft: logits both ways, gradients, ten optimizer steps, merged weights.

The models are tiny and random. Compared is the training path itself (`build_step`, `batch_loss`), with
``peft`` over ``transformers`` and torch's autograd and AdamW as the other side, all in float32.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jora_core.batches import Batch
from jora_core.config import ModelConfig
from jora_core.loading import load_params
from jora_core.lora import Adapter, init_adapter, load_adapter, merge_adapters, save_adapter
from jora_core.loss import batch_loss
from jora_core.model import Params, forward, unembed
from jora_core.optim import make_schedule
from jora_core.sharding import make_mesh
from jora_core.spec import LORA_TARGETS, LoraSpec, TrainSpec
from jora_core.step import BATCH_ARRAYS, build_step
from jora_core.weights import lora_tensor_name

ROWS, LENGTH, VOCAB = 3, 24, 96
# Slots for supervised positions: enough for every batch here, so that all are one compiled program.
SUPERVISED = 48
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# What each family has besides: grouped-query heads and a head width of its own are in all of them.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": False},
    "gemma2": {
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
        "sliding_window": 8,
    },
}
DEFAULT = ["q_proj", "v_proj"]


@dataclass(frozen=True)
class Base:
    """A random base model, ours and theirs."""

    folder: Path
    config: ModelConfig
    params: Params

    def theirs(self) -> Any:
        """A fresh model of transformers: peft changes the one that it is given."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(
            self.folder, attn_implementation="eager", dtype=torch.float32
        )


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """family → `Base`, made once each."""
    made: dict[str, Base] = {}

    def base(family: str) -> Base:
        from transformers import AutoConfig, AutoModelForCausalLM

        if family not in made:
            torch.manual_seed(0)
            folder = tmp_path_factory.mktemp(family)
            model = AutoModelForCausalLM.from_config(
                AutoConfig.for_model(family, **{**SHAPE, **FAMILIES[family]})
            )
            with torch.no_grad():  # norms and biases start at constants, which would hide a mistake in them
                for value in model.parameters():
                    if value.ndim == 1:
                        value.add_(0.2 * torch.randn_like(value))
            model.save_pretrained(folder)
            config = ModelConfig.from_hf(folder)
            made[family] = Base(folder, config, load_params(folder, config))
        return made[family]

    return base


def tokens(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, VOCAB, (ROWS, LENGTH), dtype=np.int32)


@partial(jax.jit, static_argnums=1)
def compute(params: Params, config: ModelConfig, adapter: Adapter | None) -> jax.Array:
    ids = jnp.asarray(tokens())
    positions = jnp.broadcast_to(jnp.arange(LENGTH), ids.shape)
    one = jnp.ones_like(ids)
    return unembed(params, config, forward(params, config, ids, positions, one, 0 * one, adapter=adapter))


def ours(base: Base, adapter: Adapter | None, params: Params | None = None) -> np.ndarray:
    return np.asarray(compute(params or base.params, base.config, adapter))


def theirs(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.from_numpy(tokens()).long()).logits.float().numpy()


def assert_same_logits(got: np.ndarray, expected: np.ndarray, bound: float = 2e-5) -> None:
    assert np.abs(got - expected).max() <= bound * np.abs(expected).max()


def spec_of(**changes: Any) -> LoraSpec:
    return LoraSpec.model_validate(
        {"r": 3, "lora_alpha": 5, "lora_dropout": 0, "target_modules": DEFAULT} | changes
    )


def busy_adapter(base: Base, spec: LoraSpec, seed: int = 0) -> Adapter:
    """An adapter that changes something in every part, DoRA's magnitudes too."""
    adapter = init_adapter(base.config, spec, jax.random.key(seed), params=base.params)
    leaves, tree = jax.tree.flatten(adapter)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(
        tree, [leaf + 0.1 * rng.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves]
    )


def read_by_peft(base: Base, folder: Path, trainable: bool = False) -> Any:
    """Load a folder with peft, which must have nothing to remark."""
    from peft import PeftModel

    model = base.theirs()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)


def made_by_peft(base: Base, folder: Path, dtype: Any = torch.float32, **settings: Any) -> Any:
    """A random adapter of peft's over `base`, saved by peft."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    settings = {"r": 3, "lora_alpha": 5, "target_modules": DEFAULT, "init_lora_weights": False} | settings
    model = get_peft_model(base.theirs(), LoraConfig(**settings))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                # Rounded to what the file will hold, so that the model in memory is the one in the file.
                value.copy_((value + 0.1 * torch.randn_like(value)).to(dtype).float())
    if dtype != torch.float32:
        narrow = {n: v.to(dtype) for n, v in model.state_dict().items()}
        model.save_pretrained(str(folder), state_dict=narrow)
    else:
        model.save_pretrained(str(folder))
    return model


KINDS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "rsdora": {"use_rslora": True, "use_dora": True},
}


@pytest.mark.parametrize("targets", [DEFAULT, list(LORA_TARGETS)], ids=["qv", "all"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_peft_reads_ours(bases: Any, tmp_path: Path, kind: str, targets: list[str]) -> None:
    base = bases("llama")
    spec = spec_of(target_modules=targets, **KINDS[kind])
    adapter = busy_adapter(base, spec)
    save_adapter(adapter, tmp_path, spec, "base")
    expected = theirs(read_by_peft(base, tmp_path))
    got = ours(base, adapter)
    assert np.abs(got - ours(base, None)).max() > 0.1
    assert_same_logits(got, expected)
    assert_same_logits(ours(base, None, merge_adapters(base.params, [adapter])), expected)
    again, read_spec = load_adapter(tmp_path, base.config)
    assert read_spec == spec
    assert jax.tree.structure(again) == jax.tree.structure(adapter)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, adapter))


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        ({}, torch.float32),
        ({"target_modules": list(LORA_TARGETS)}, torch.float32),
        ({"use_rslora": True}, torch.float32),
        ({"use_dora": True, "target_modules": "all-linear"}, torch.float32),
        ({"target_modules": r"model\.layers\.\d+\..*\.(k|down)_proj"}, torch.float32),
        ({"target_modules": "all-linear", "exclude_modules": ["q_proj", "up_proj"]}, torch.float32),
        ({"task_type": "CAUSAL_LM", "lora_dropout": 0.3}, torch.bfloat16),
        ({"use_dora": True, "use_rslora": True}, torch.bfloat16),
        ({"target_modules": ["o_proj"]}, torch.float16),
    ],
    ids=["lora", "all", "rslora", "dora-all-linear", "pattern", "exclude", "bf16", "rsdora-bf16", "fp16"],
)
def test_ours_reads_pefts(bases: Any, tmp_path: Path, settings: dict[str, Any], dtype: Any) -> None:
    base = bases("llama")
    model = made_by_peft(base, tmp_path, dtype, **settings)
    adapter, spec = load_adapter(tmp_path, base.config)
    assert spec.scale == pytest.approx(5 / (3**0.5 if settings.get("use_rslora") else 3))
    expected = theirs(model)
    assert np.abs(ours(base, None) - expected).max() > 0.1
    assert_same_logits(ours(base, adapter), expected)
    assert_same_logits(ours(base, None, merge_adapters(base.params, [adapter])), expected)


def test_a_pefts_adapter_is_saved_again_without_loss(bases: Any, tmp_path: Path) -> None:
    base = bases("llama")
    expected = theirs(made_by_peft(base, tmp_path / "theirs", use_dora=True, target_modules="all-linear"))
    adapter, spec = load_adapter(tmp_path / "theirs", base.config)
    save_adapter(adapter, tmp_path / "ours", spec, "base")
    np.testing.assert_array_equal(theirs(read_by_peft(base, tmp_path / "ours")), expected)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_new_adapter_is_pefts_new_adapter(bases: Any, tmp_path: Path, kind: str) -> None:
    """B zero, A in the same range, DoRA's magnitude the same, and nothing changed yet."""
    from peft import LoraConfig, get_peft_model

    base = bases("llama")
    spec = spec_of(r=16, **KINDS[kind])
    adapter = init_adapter(base.config, spec, jax.random.key(0), params=base.params)
    np.testing.assert_allclose(ours(base, adapter), ours(base, None), atol=1e-5)
    settings = LoraConfig(r=16, lora_alpha=5, target_modules=DEFAULT, **KINDS[kind])
    model = get_peft_model(base.theirs(), settings)
    for target in DEFAULT:
        pair = adapter.weights[target]
        for layer in range(2):
            layer_theirs = {
                part: model.state_dict()[
                    lora_tensor_name(layer, target, part).replace(".weight", "") + suffix
                ]
                for part, suffix in [("A", ".default.weight"), ("B", ".default.weight")]
                + ([("magnitude", ".default.weight")] if spec.use_dora else [])
            }
            bound = float(layer_theirs["A"].abs().max())
            assert float(jnp.abs(pair.a[layer]).max()) == pytest.approx(bound, rel=0.02)
            assert not layer_theirs["B"].any() and not pair.b[layer].any()
            if spec.use_dora:
                assert pair.magnitude is not None
                np.testing.assert_allclose(pair.magnitude[layer], layer_theirs["magnitude"], rtol=1e-6)


def test_several_adapters_merge_in_order(bases: Any, tmp_path: Path) -> None:
    """Against peft's own way to do it: merge one, put the next on what came out, merge that."""
    from peft import PeftModel

    base = bases("llama")
    specs = [spec_of(use_dora=True), spec_of(r=2, lora_alpha=3, use_rslora=True), spec_of(use_dora=True, r=1)]
    adapters = [busy_adapter(base, spec, seed) for seed, spec in enumerate(specs)]
    model = base.theirs()
    for number, (adapter, spec) in enumerate(zip(adapters, specs, strict=True)):
        save_adapter(adapter, tmp_path / str(number), spec, "base")
        model = PeftModel.from_pretrained(model, str(tmp_path / str(number))).merge_and_unload()
    expected = theirs(model)
    assert_same_logits(ours(base, None, merge_adapters(base.params, adapters)), expected)
    backwards = ours(base, None, merge_adapters(base.params, adapters[::-1]))
    assert np.abs(backwards - expected).max() > 1e-3


def test_a_merge_is_rounded_once(bases: Any) -> None:
    """Two updates, each below half a step of bfloat16, that change the weight together."""
    base = bases("llama")
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), base.params)
    adapter = busy_adapter(base, spec_of(lora_alpha=1e-3))
    many = merge_adapters(narrow, [adapter] * 64).layers.q_proj
    assert many.dtype == jnp.bfloat16
    pair = adapter.weights["q_proj"]
    exact = narrow.layers.q_proj.astype(jnp.float32) + 64 * adapter.scale * pair.b @ pair.a
    np.testing.assert_array_equal(many, exact.astype(jnp.bfloat16))
    assert bool((many != narrow.layers.q_proj).any())


def microbatch(seed: int) -> tuple[Batch, np.ndarray, np.ndarray]:
    """A batch of whole rows in which some positions are supervised; also its ids and weights [B, T]."""
    rng = np.random.default_rng(seed)
    ids = tokens(seed)
    weights = (rng.random(ids.shape) < 0.4).astype(np.float32)
    weights[:, -1] = 0
    index = np.flatnonzero(weights).astype(np.int32)
    padding = np.zeros(SUPERVISED - len(index), np.int32)
    batch = Batch(
        tokens=ids,
        positions=np.broadcast_to(np.arange(LENGTH, dtype=np.int32), ids.shape).copy(),
        segment_ids=np.ones_like(ids),
        suffix_ids=np.zeros_like(ids),
        index=np.concatenate([index, padding])[None],
        targets=np.concatenate([np.roll(ids, -1, axis=1).reshape(-1)[index], padding])[None],
        weights=np.concatenate([np.ones(len(index), np.float32), padding], dtype=np.float32)[None],
        ids=(),
        slots=ids.size,
        supervised=len(index),
    )
    return batch, ids, weights


def torch_loss(model: Any, ids: np.ndarray, weights: np.ndarray) -> Any:
    """Summed cross-entropy of the next token at the positions with a weight."""
    logits = model(torch.from_numpy(ids).long()).logits[:, :-1]
    values = torch.nn.functional.cross_entropy(
        logits.reshape(-1, VOCAB), torch.from_numpy(ids[:, 1:]).long().reshape(-1), reduction="none"
    )
    return (values * torch.from_numpy(weights[:, :-1]).reshape(-1)).sum()


@pytest.mark.parametrize("targets", [DEFAULT, list(LORA_TARGETS)], ids=["qv", "all"])
@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_gradients_equal_pefts(
    bases: Any, tmp_path: Path, family: str, kind: str, targets: list[str]
) -> None:
    base = bases(family)
    spec = spec_of(target_modules=targets, **KINDS[kind])
    adapter = busy_adapter(base, spec)
    save_adapter(adapter, tmp_path, spec, "base")
    model = read_by_peft(base, tmp_path, trainable=True).train()
    batch, ids, weights = microbatch(5)
    expected = torch_loss(model, ids, weights)
    expected.backward()
    arrays = {name: jnp.asarray(getattr(batch, name)) for name in BATCH_ARRAYS}

    @jax.jit
    def value_and_grad(adapter: Adapter) -> Any:
        return jax.value_and_grad(
            lambda tree: batch_loss(base.params, base.config, arrays, adapter=tree, dropout_key=None)
        )(adapter)

    value, grads = value_and_grad(adapter)
    assert float(value) == pytest.approx(expected.item(), rel=1e-5)
    wanted = {
        name.replace(".default", ""): parameter.grad.numpy()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    compared = 0
    for target, pair in grads.weights.items():
        for part, stacked in (("A", pair.a), ("B", pair.b), ("magnitude", pair.magnitude)):
            if stacked is None:
                continue
            for layer, got in enumerate(stacked):
                name = lora_tensor_name(layer, target, part)
                want = wanted[name if part != "magnitude" else name + ".weight"]
                assert np.abs(want).max() > 1e-4, name
                assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max(), name
                compared += 1
    assert compared == len(wanted)


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_ten_steps_equal_pefts_with_adamw(bases: Any, tmp_path: Path, family: str, kind: str) -> None:
    """The same start, batches, accumulation, clipping, warm-up, decay of rate and of weights."""
    base = bases(family)
    lora = spec_of(target_modules=list(LORA_TARGETS), **KINDS[kind])
    start = busy_adapter(base, lora)
    save_adapter(start, tmp_path / "start", lora, "base")
    optim = {
        "learning_rate": 2e-2,
        "warmup_ratio": 0.3,
        "min_lr_ratio": 0.1,
        "weight_decay": 0.1,
        "max_grad_norm": 0.5,
    }
    order = {
        "model": base.folder,
        "lora": lora.model_dump(),
        "optim": optim,
        "data": {"records": tmp_path / "none"},
        "max_steps": 10,
        "output_dir": tmp_path / "out",
        "checkpoint_dir": tmp_path / "checkpoints",
    }
    spec = TrainSpec.model_validate(order)
    batches = [[microbatch(100 + 2 * step + i) for i in range(2)] for step in range(10)]
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        steps = build_step(base.config, spec, mesh, make_schedule(spec.optim, 10), start)
        state = steps.start(start)
        sums = steps.zero(state)
        losses, norms, rates = [], [], []
        for microbatches in batches:
            for number, (batch, _, _) in enumerate(microbatches):
                sums = steps.accumulate(sums, state, base.params, steps.place(batch), number)
            state, sums, metrics = steps.update(state, sums)
            losses.append(float(metrics.loss))
            norms.append(float(metrics.grad_norm))
            rates.append(float(metrics.learning_rate))

    model = read_by_peft(base, tmp_path / "start", trainable=True).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=optim["learning_rate"], betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1
    )
    expected = []
    for step, microbatches in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = rate_by_hand(step, optim)
        supervised = sum(weights.sum() for _, _, weights in microbatches)
        total = 0.0
        for _, ids, weights in microbatches:
            loss = torch_loss(model, ids, weights) / float(supervised)
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        assert rates[step] == pytest.approx(rate_by_hand(step, optim), rel=1e-5)
        assert norms[step] == pytest.approx(norm.item(), rel=1e-3)
        assert norm > 0.5, "the clip must have something to do"
        optimizer.step()
        optimizer.zero_grad()
        expected.append(total)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert expected[-1] < expected[0]


def rate_by_hand(step: int, optim: dict[str, float]) -> float:
    """Three steps of warm-up of ten, then half a cosine down to a tenth of the peak."""
    if step < 3:
        return optim["learning_rate"] * (step + 1) / 3
    share = 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * (step - 3) / 6))
    return float(optim["learning_rate"] * share)


def test_our_config_file_is_pefts(bases: Any, tmp_path: Path) -> None:
    from peft import LoraConfig

    base = bases("llama")
    spec = spec_of(
        lora_alpha=12, use_rslora=True, use_dora=True, target_modules="all-linear", lora_dropout=0.1
    )
    save_adapter(busy_adapter(base, spec), tmp_path, spec, "some/base")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        read = LoraConfig.from_pretrained(str(tmp_path))
    assert isinstance(read, LoraConfig)
    assert (read.r, read.lora_alpha, read.lora_dropout) == (3, 12, 0.1)
    assert (read.use_rslora, read.use_dora, read.base_model_name_or_path) == (True, True, "some/base")
    assert read.target_modules == set(LORA_TARGETS)
    assert type(json.loads((tmp_path / "adapter_config.json").read_text())["lora_alpha"]) is int
