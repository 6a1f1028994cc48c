"""Tiny model folders and records files, made anew for each session of tests."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
}
WORDS = [
    "lamp",
    "river",
    "copper",
    "seven",
    "market",
    "window",
    "garden",
    "paper",
    "silver",
    "bread",
    "train",
    "mountain",
    "letter",
    "clock",
]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder without weights: config.json and a byte-level tokenizer with BOS and EOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS), "### Instruction: ### Input: ### Response:"] * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    special = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps({**config, **SHAPE, "vocab_size": -(-size // 4) * 4}))
    return folder


@pytest.fixture(scope="session")
def tiny_weights(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same folder with random float32 weights."""
    import shutil

    import jax

    from jora_core.architecture.model_config import ModelConfig
    from jora_core.parameters.initialize import init_params
    from jora_core.weights.checkpoint_folder import save_params

    folder = tmp_path_factory.mktemp("tiny-weights")
    shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
    config = ModelConfig.from_hf(tiny_model)
    make = jax.jit(lambda key: init_params(config, key))
    save_params(make(jax.random.key(7)), config, folder)
    return folder


@pytest.fixture(scope="session")
def alpaca_rows() -> Callable[..., list[dict[str, Any]]]:
    """A maker of records: `contexts` contexts with `questions` questions each, lines of random words."""

    def make(contexts: int = 12, questions: int = 3, lines: int = 3, seed: int = 0) -> list[dict[str, Any]]:
        rng = random.Random(seed)
        rows = []
        for c in range(contexts):
            posts = [f"#{i + 1} {' '.join(rng.choices(WORDS, k=rng.randint(2, 5)))}" for i in range(lines)]
            for q in range(questions):
                picked = rng.randrange(lines)
                rows.append(
                    {
                        "id": f"c{c}-q{q}",
                        "instruction": "Say which line it is.",
                        "input": "\n".join(posts) + f"\n\nQuestion {q}: {posts[picked][3:]}",
                        "output": f"line {picked + 1}",
                        "task": "threads",
                        "split": "train",
                        "context_id": f"c{c}",
                        "context_ids": [f"c{c}-{i}" for i in range(lines)],
                        "oracle_ids": [f"c{c}-{picked}"],
                    }
                )
        return rows

    return make


@pytest.fixture(scope="session")
def write_rows() -> Callable[[Path, list[dict[str, Any]]], Path]:
    """A writer of rows to a Parquet file."""

    def write(path: Path, rows: list[dict[str, Any]]) -> Path:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
        return path

    return write


@pytest.fixture(scope="session")
def program_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled programs of this session: tests that train the same shapes compile them once."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture()
def train_order(tmp_path: Path, program_cache: Path) -> Callable[..., dict[str, Any]]:
    """A small order to train, as the dict of a spec; keyword arguments replace its fields."""

    def make(model: Path, records: Path, name: str = "run", **changes: Any) -> dict[str, Any]:
        data = {
            "records": str(records),
            "max_seq_len": 128,
            "tokens_per_batch": 256,
            **changes.pop("data", {}),
        }
        order = {
            "model": str(model),
            "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1},
            "optim": {"learning_rate": 1e-2},
            "data": data,
            "max_steps": 6,
            "checkpoint_every": 3,
            "output_dir": str(tmp_path / name / "out"),
            "checkpoint_dir": str(tmp_path / name / "checkpoints"),
            "compilation_cache_dir": str(program_cache),
        }
        return order | changes

    return make


@pytest.fixture(scope="session")
def random_adapter() -> Callable[..., Any]:
    """A maker of adapters that change something: B is random too."""
    import jax

    from jora_core.parameters.initialize import init_adapter

    def make(config: Any, spec: Any, seed: int = 0) -> Any:
        adapter = init_adapter(config, spec, jax.random.key(seed))
        weights = {
            name: dataclasses.replace(pair, b=0.2 * jax.random.normal(jax.random.key(seed + i), pair.b.shape))
            for i, (name, pair) in enumerate(adapter.weights.items(), 1)
        }
        return dataclasses.replace(adapter, weights=weights)

    return make


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Family → tiny random model, ours and transformers' (`peft_cases.Base`), made once each."""
    from tests.jora_core.peft_cases import make_bases

    return make_bases(tmp_path_factory)
