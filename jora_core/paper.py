"""The interface of the JORA paper (arXiv:2403.11366). The paper's listing runs with this package's name.

    config = ParallamaConfig(MODEL_SIZE=model_size, JAX_PARAMS_PATH=jax_path, LLAMA2_META_PATH=hf_path)
    dataset = generate_alpaca_dataset(dataset_path, "train", config)
    train_lora(config, dataset, checkpoint_path)

`train_lora` writes the dataset as records, makes a `TrainSpec`, and calls `train`. Some behaviour of the
original is changed: nothing is pickled, no weights are copied, long examples lose context instead of being
left out, a context is never split between training and test, and general instructions are never mixed into
the test split.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, overload

import jax
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from jora_core.architecture.model_config import ModelConfig
from jora_core.base.atomic_files import atomic_path
from jora_core.base.error_messages import describe_validation_error
from jora_core.base.errors import InputError
from jora_core.data.instruction_files import (
    PAPER_TEMPLATE,
    AlpacaRecord,
    Split,
    mixed_records,
    read_alpaca,
    split_records,
)
from jora_core.data.tokenizer import load_tokenizer
from jora_core.specs.train import TrainSpec
from jora_core.training.train import train

ALPACA_FILE = "alpaca_data_cleaned.json"
# Tokens for BOS, EOS, and those that shortening a prompt may add.
_MARGIN = 8
# Layers of Llama 2 by MODEL_SIZE: they show whether the size and the folder agree.
_MODEL_LAYERS = {"7B": 32, "13B": 40, "70B": 80}


@dataclass(frozen=True)
class ParallamaConfig:
    """Settings of one fine-tuning run of a Llama model, as in the paper.

    Attributes:
        JAX_PARAMS_PATH: folder of converted weights in the original. Here weights are read from the Hugging
            Face folder, so nothing is written to this folder. If it is a model folder, its weights are used.
        LLAMA2_META_PATH, LLAMA2_HF_PATH: model folder in Hugging Face layout. If both are given, the latter
            is used.
        MODEL_SIZE: "7B", "13B" or "70B". The folder's config.json is used; a different size is reported.
        NUM_GPUS: number of devices that share the weights (tensor parallel); all if None.
        BATCH_SIZE: rows of MAX_SEQ_LEN tokens in one microbatch; short examples share a row.
    """

    # Names and defaults are the original's, so that its scripts run as they are.
    JAX_PARAMS_PATH: str | Path | None = None
    LLAMA2_META_PATH: str | Path | None = None
    MODEL_SIZE: str | None = None
    NUM_GPUS: int | None = None
    LORA_R: int = 16
    LORA_ALPHA: int = 16
    LORA_DROPOUT: float = 0.05
    LR: float = 1e-4
    BATCH_SIZE: int = 1
    N_ACCUMULATION_STEPS: int = 8
    MAX_SEQ_LEN: int = 2000
    N_EPOCHS: int = 7
    SEED: int = 420
    LLAMA2_HF_PATH: str | Path | None = None

    @property
    def model(self) -> Path:
        """The model folder, from the three path fields.

        Raises:
            InputError: no path given, or the weights are a pickle file.
        """
        jax_path = None if self.JAX_PARAMS_PATH is None else Path(self.JAX_PARAMS_PATH)
        # The path decides only where it is a model folder. A pickle may run any code when it is loaded, so a
        # file here is refused, with what to give instead.
        if jax_path is not None and (jax_path / "config.json").is_file():
            return jax_path
        if jax_path is not None and jax_path.is_file():
            raise InputError(
                f"JAX_PARAMS_PATH={jax_path} is a file, and pickles are never read; leave it out: weights "
                "are read from the Hugging Face folder in LLAMA2_META_PATH"
            )
        named = self.LLAMA2_HF_PATH or self.LLAMA2_META_PATH
        if named is None:
            raise InputError("ParallamaConfig: set LLAMA2_META_PATH to a model folder in Hugging Face layout")
        return Path(named)


@dataclass(frozen=True)
class ParagemmaConfig:
    """Settings of one fine-tuning run of a Gemma model (1, 2 or 3), as in the paper.

    Attributes:
        GEMMA_MODEL_PATH: model folder in Hugging Face layout.
        MODEL_VERSION: "2b", "7b-it" and so on in the original; without effect, config.json is used.
        NUM_SHARDS: number of devices that share the weights (tensor parallel); all if None.
        BATCH_SIZE: rows of MAX_SEQ_LEN tokens in one microbatch; short examples share a row.
        CACHE_SIZE: length of the original's key/value cache; without effect, since training needs no cache.
    """

    GEMMA_MODEL_PATH: str | Path | None = None
    MODEL_VERSION: str | None = None
    NUM_SHARDS: int | None = None
    LORA_R: int = 16
    LORA_ALPHA: int = 16
    LORA_DROPOUT: float = 0.05
    LR: float = 1e-4
    BATCH_SIZE: int = 1
    N_ACCUMULATION_STEPS: int = 8
    MAX_SEQ_LEN: int = 2000
    N_EPOCHS: int = 7
    SEED: int = 420
    CACHE_SIZE: int = 30


class AlpacaDataset(Sequence[tuple[str, str]]):
    """Prompts and answers of an instruction file. Item i is (prompt, answer), as in the paper."""

    def __init__(
        self,
        *,
        path: str | Path,
        split: Split = "train",
        split_percentage: float = 0.8,
        alpaca_mix: float = 0.3,
        alpaca_path: str | Path | None = None,
        seed: int = 420,
    ) -> None:
        """Read a file, take one split of it, and mix in general instructions.

        Args:
            path: Alpaca records as JSON, JSON lines or Parquet.
            split: "train" or "test".
            split_percentage: share of the records for training, counted from the first, with whole contexts.
                Not used for a file with a split column.
            alpaca_mix: general instructions to add to the training split, as a share of its records.
            alpaca_path: file of general instructions. If None, the file named by the environment variable
                JORA_ALPACA_PATH, else alpaca_data_cleaned.json beside `path`, else a small built-in set.
            seed: seed of the choice of general instructions.

        Raises:
            InputError: a file cannot be read, a value is out of range, or a split is empty.
        """
        # Checked here, because callers of the paper's functions have no type checker before them.
        if split not in ("train", "test"):
            raise InputError(f"split {split!r} is unknown; expected 'train' or 'test'")
        if not 0 < split_percentage < 1:
            raise InputError(f"split_percentage={split_percentage} must lie between 0 and 1")
        if alpaca_mix < 0:
            raise InputError(f"alpaca_mix={alpaca_mix} must not be negative")
        path = Path(path)
        self.records: tuple[AlpacaRecord, ...] = tuple(
            split_records(read_alpaca(path), split, split_percentage)
        )
        self.mixed = 0
        # A share of this split's records, not of the whole file.
        count = int(len(self.records) * alpaca_mix)
        if split == "train" and count:
            source = _mix_source(path, alpaca_path)
            if source is not None and source.resolve() == path.resolve():
                # The file is the general set: mixing would only repeat records, or let test records in.
                _log(f"alpaca_mix: {path} itself is the set of general instructions, nothing is added")
                return
            extra = mixed_records(count, seed, source)
            self.mixed = len(extra)
            self.records += tuple(extra)
            _log(
                f"alpaca_mix={alpaca_mix}: {self.mixed} general instructions from "
                + (str(source) if source else "the built-in set; name a file of your own with alpaca_path")
            )

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> tuple[str, str]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[str, str]]: ...
    def __getitem__(self, index: int | slice) -> tuple[str, str] | list[tuple[str, str]]:
        if isinstance(index, slice):
            return [(record.prompt, record.output) for record in self.records[index]]
        record = self.records[index]
        return record.prompt, record.output

    def write_records(self, path: Path) -> None:
        """Write the dataset as a records file of the training core."""
        rows = [
            {
                "id": record.id,
                # With the head in the instruction, `PAPER_TEMPLATE` makes the paper's prompt both for records
                # with an input and for those without.
                "instruction": record.head,
                "input": record.input,
                "output": record.output,
                "task": "alpaca",
                # The split was made when the file was read: all that is left is for training.
                "split": "train",
                "context_id": record.context,
            }
            for record in self.records
        ]
        with atomic_path(path) as temporary:
            pq.write_table(pa.Table.from_pylist(rows), temporary)


def generate_alpaca_dataset(
    path: str | Path,
    split: Split,
    config: ParallamaConfig | ParagemmaConfig,
    split_percentage: float = 0.8,
    alpaca_mix: float = 0.3,
    alpaca_path: str | Path | None = None,
) -> AlpacaDataset:
    """Return the train or test part of an instruction file.

    Args:
        path: Alpaca records as JSON, JSON lines or Parquet.
        split: "train" or "test".
        config: settings of the run; only its seed is used.
        split_percentage: share of the records that is for training.
        alpaca_mix: general instructions to add, as a share of the records.
        alpaca_path: file of general instructions; None as in `AlpacaDataset`.

    Raises:
        InputError: a file cannot be read, a value is out of range, or a split is empty.
    """
    return AlpacaDataset(
        path=path,
        split=split,
        split_percentage=split_percentage,
        alpaca_mix=alpaca_mix,
        alpaca_path=alpaca_path,
        seed=config.SEED,
    )


def train_lora(
    config: ParallamaConfig,
    train_dataset: AlpacaDataset,
    checkpoint_dir: str | Path,
    checkpoint_prefix: str = "jax_lora",
    verbose: bool = True,
) -> dict[str, Any]:
    """Train an adapter on q_proj and v_proj. A killed run continues from its last checkpoint.

    The PEFT adapter and the metrics are written to ``<checkpoint_dir>/<checkpoint_prefix>_final``, the
    checkpoints to ``<checkpoint_dir>/<checkpoint_prefix>_state``.

    Args:
        config: settings of the run.
        train_dataset: prompts and answers.
        checkpoint_dir: folder of the results.
        checkpoint_prefix: prefix of the names of the written folders.
        verbose: show progress on standard error.

    Returns:
        The content of ``result.json`` in the adapter's folder.

    Raises:
        InputError: a path or value of the configuration cannot be used.
    """
    return _train(config, "ParallamaConfig", train_dataset, checkpoint_dir, checkpoint_prefix, verbose)


def _train(
    config: ParallamaConfig,
    owner: str,
    train_dataset: AlpacaDataset,
    checkpoint_dir: str | Path,
    checkpoint_prefix: str,
    verbose: bool,
) -> dict[str, Any]:
    """Train an adapter. `owner` is the name of the settings class for error messages."""
    folder = Path(checkpoint_dir)
    # A wrong size is reported and no error: the original needed it to build the model, here the folder
    # describes the model.
    layers = ModelConfig.from_hf(config.model).num_layers
    if config.MODEL_SIZE is not None and _MODEL_LAYERS.get(config.MODEL_SIZE, layers) != layers and verbose:
        _log(f"MODEL_SIZE={config.MODEL_SIZE!r}, but {config.model} has {layers} layers: the folder decides")
    records = folder / f"{checkpoint_prefix}_records.parquet"
    # Written again at each start. Equal records give an equal digest, so a killed run finds its checkpoints.
    train_dataset.write_records(records)
    # The original pads each row to MAX_SEQ_LEN. Rows of the longest example hold the same examples in fewer
    # slots.
    longest = _longest(config, train_dataset)
    settings = {
        "model": config.model,
        # `target_modules` is left out: its default is q and v, as in the paper.
        "lora": {"r": config.LORA_R, "lora_alpha": config.LORA_ALPHA, "lora_dropout": config.LORA_DROPOUT},
        "optim": {"learning_rate": config.LR},
        "data": {
            "records": records,
            "max_seq_len": longest,
            # The original counts rows of a batch, the core counts token slots.
            "tokens_per_batch": longest * config.BATCH_SIZE,
            "prompt": {"template": PAPER_TEMPLATE},
        },
        "n_epochs": config.N_EPOCHS,
        "gradient_accumulation_steps": config.N_ACCUMULATION_STEPS,
        # All devices split the weights, as in the paper; none splits the batch.
        "mesh": {"tensor": config.NUM_GPUS or jax.device_count()},
        # XLA's CPU compiler widens bfloat16 products to float32, so bfloat16 saves no time there.
        "dtype": "float32" if jax.default_backend() == "cpu" else "bfloat16",
        "seed": config.SEED,
        "output_dir": folder / f"{checkpoint_prefix}_final",
        "checkpoint_dir": folder / f"{checkpoint_prefix}_state",
    }
    try:
        spec = TrainSpec.model_validate(settings)
    except ValidationError as err:
        raise InputError(f"{owner}: {describe_validation_error(err, TrainSpec)}") from None
    return train(spec, verbose=verbose)


def generate_alpaca_dataset_gemma(
    path: str | Path,
    split: Split,
    config: ParagemmaConfig,
    split_percentage: float = 0.8,
    alpaca_mix: float = 0.3,
    alpaca_path: str | Path | None = None,
) -> AlpacaDataset:
    """Return the train or test part of an instruction file. The prompt is the same as for Llama.

    Args:
        path: Alpaca records as JSON, JSON lines or Parquet.
        split: "train" or "test".
        config: settings of the run; only its seed is used.
        split_percentage: share of the records that is for training.
        alpaca_mix: general instructions to add, as a share of the records.
        alpaca_path: file of general instructions; None as in `AlpacaDataset`.

    Raises:
        InputError: a file cannot be read, a value is out of range, or a split is empty.
    """
    return generate_alpaca_dataset(path, split, config, split_percentage, alpaca_mix, alpaca_path)


def train_lora_gemma(
    config: ParagemmaConfig,
    train_dataset: AlpacaDataset,
    checkpoint_dir: str | Path,
    checkpoint_prefix: str = "jax_lora",
    verbose: bool = True,
) -> dict[str, Any]:
    """Train an adapter on a Gemma model; see `train_lora`.

    Args:
        config: settings of the run.
        train_dataset: prompts and answers.
        checkpoint_dir: folder of the results.
        checkpoint_prefix: prefix of the names of the written folders.
        verbose: show progress on standard error.

    Returns:
        The content of ``result.json`` in the adapter's folder.

    Raises:
        InputError: no model path, or a path or value of the configuration cannot be used.
    """
    if config.GEMMA_MODEL_PATH is None:
        raise InputError("ParagemmaConfig: set GEMMA_MODEL_PATH to a model folder in Hugging Face layout")
    # Settings with the same name in both classes; the two with other names follow.
    names = {field.name for field in fields(ParallamaConfig)} & {field.name for field in fields(config)}
    shared = {name: getattr(config, name) for name in names}
    settings = ParallamaConfig(LLAMA2_HF_PATH=config.GEMMA_MODEL_PATH, NUM_GPUS=config.NUM_SHARDS, **shared)
    return _train(settings, "ParagemmaConfig", train_dataset, checkpoint_dir, checkpoint_prefix, verbose)


def _longest(config: ParallamaConfig, dataset: AlpacaDataset) -> int:
    """Return the tokens of the longest example, at most MAX_SEQ_LEN: the longest row that is needed."""
    tokenizer = load_tokenizer(config.model)
    prompts = tokenizer.encode_batch([record.prompt for record in dataset.records])
    answers = tokenizer.encode_batch([record.output for record in dataset.records])
    longest = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    # At least the margin: a row of fewer tokens could not hold BOS, a prompt, an answer and EOS.
    return max(_MARGIN, min(config.MAX_SEQ_LEN, longest + _MARGIN))


def _mix_source(path: Path, alpaca_path: str | Path | None) -> Path | None:
    if alpaca_path is None:
        alpaca_path = os.environ.get("JORA_ALPACA_PATH")
    if alpaca_path is not None:
        return Path(alpaca_path)
    # A file that is named must exist; the one beside the data is taken only if it is there.
    beside = path.parent / ALPACA_FILE
    return beside if beside.is_file() else None


def _log(line: str) -> None:
    # Not to standard output, which belongs to the script of the caller.
    print(line, file=sys.stderr, flush=True)
