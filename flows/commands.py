"""What `jora generate` and `jora merge` do: one order for the training core each, outside the store."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from flows.child import run_child
from flows.config import PipelineConfig
from flows.errors import InputError, one_line_os_errors
from flows.keys import identify
from flows.plan import missing_upstream
from flows.store import Store
from jora_core.spec import ALPACA_SHORT, ExportSpec, PredictSpec


def generate_answer(
    config: PipelineConfig,
    instruction: str,
    text: str,
    model: Path | None = None,
    adapter: Path | None = None,
    max_new_tokens: int = 64,
) -> str:
    """Answer one prompt, greedily: with `model` (and `adapter`), else with the last phase of `config`.

    Raises:
        InputError: an adapter without its model, or a configuration that was not trained yet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if adapter and not model:
        raise InputError("--adapter needs --model, the base model that it was trained on")
    store = Store(config.store)
    base, adapter = (model, adapter) if model else _trained(config, store)
    with tempfile.TemporaryDirectory(prefix="jora-generate-") as name:
        folder = Path(name)
        row = {
            **dict.fromkeys(("id", "task", "context_id"), "prompt"),
            "instruction": instruction,
            "input": text,
            "output": "",
            "split": "test",
            "choices": [],
            "gold": [],
        }
        schema = pa.schema(
            [
                (key, pa.list_(pa.string()) if isinstance(value, list) else pa.string())
                for key, value in row.items()
            ]
        )
        pq.write_table(pa.Table.from_pylist([row], schema=schema), folder / "records.parquet")
        longest = config.evaluate.max_seq_len
        spec = PredictSpec(
            model=base,
            systems={"answer": adapter},
            records=folder / "records.parquet",
            task=None,
            split="test",
            max_records=None,
            prompt_template=ALPACA_SHORT,
            max_seq_len=longest,
            tokens_per_batch=max(config.evaluate.tokens_per_batch, longest),
            mode="generate",
            max_new_tokens=max_new_tokens,
            mesh=config.mesh,
            dtype=config.model.dtype,
            quantization=config.model.quantization,
            output_dir=folder / "answer",
            compilation_cache_dir=store.cache_dir / "jax" if store.root.exists() else None,
        )
        run_child("predict", spec, folder, on_line=lambda line: None)
        rows = pq.read_table(folder / "answer" / "predictions.parquet").to_pylist()
    return rows[0]["text"]


def _trained(config: PipelineConfig, store: Store) -> tuple[Path, Path]:
    """The base model and the last phase's adapter of a configuration that has been trained."""
    stage = config.phases[-1].stage
    key = identify(config, until=stage)[stage].key
    check = store.check(stage, key)
    if not check.whole:
        raise missing_upstream("generate", stage, check)
    return Path(config.model.path), store.path(stage, key)


def merge_adapter(
    base: Path, adapter: Path, target: Path, dtype: str | None = None, then: Sequence[Path] = ()
) -> Path:
    """Merge a PEFT adapter into its base model; write the new model folder `target`, all of it or nothing.

    Args:
        then: adapters merged after it, in order.

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
