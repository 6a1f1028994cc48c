"""Train the tiny base model from scratch: `python data/make_base.py [--work DIR]`.

Fits the tokenizer, then takes the lessons of `make_base_corpus.py` one by one: writes their rows and has the
project's own training core learn all parameters (`trainable: all` is a mode of the same loop that trains
adapters). The first lesson is taken by a part of the model, two layers of attention; everything else starts
at zero, where no gradient reaches it, and gets its random weights after that. Learning to look things up
takes 400 steps this way; the whole model from the start had not found it after 2,000.

A killed run goes on from its last checkpoint when started again. The weights, and a note of how they were
made, end up in `data/tiny-llama/`.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from make_base_corpus import LESSONS, Lesson, rows_of, write_rows
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).parent
MODEL = HERE / "tiny-llama"
FIRST_LAYERS = 2  # that take part in the first lesson
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def first_weights(config: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random weights under Hugging Face's names: embeddings N(0, 1), matrices N(0, 1/in), both blocks'
    outputs smaller by 1/√(2L); all zero that the first lesson leaves out.
    """
    width, inner, depth = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]

    def normal(rows: int, columns: int, scale: float = 1.0) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) * scale / np.sqrt(columns)).astype(np.float32)

    weights = {
        "model.embed_tokens.weight": normal(config["vocab_size"], width, np.sqrt(width)),
        "model.norm.weight": np.ones(width, np.float32),
        "lm_head.weight": normal(config["vocab_size"], width),
    }
    for i in range(depth):
        present = float(i < FIRST_LAYERS)
        weights |= {
            f"model.layers.{i}.input_layernorm.weight": np.ones(width, np.float32),
            f"model.layers.{i}.self_attn.q_proj.weight": normal(width, width),
            f"model.layers.{i}.self_attn.k_proj.weight": normal(width, width),
            f"model.layers.{i}.self_attn.v_proj.weight": normal(width, width, present),
            f"model.layers.{i}.self_attn.o_proj.weight": normal(width, width, present / np.sqrt(2 * depth)),
            f"model.layers.{i}.post_attention_layernorm.weight": np.ones(width, np.float32),
            f"model.layers.{i}.mlp.gate_proj.weight": normal(inner, width),
            f"model.layers.{i}.mlp.up_proj.weight": np.zeros((inner, width), np.float32),
            f"model.layers.{i}.mlp.down_proj.weight": np.zeros((width, inner), np.float32),
        }
    return weights


def grown(weights: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The same weights with random values where there was zero; what reads from them starts small."""
    out = dict(weights)
    for name, value in weights.items():
        if not value.any():
            scale = 0.1 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
            shape = value.shape
            out[name] = (rng.standard_normal(shape) * scale / np.sqrt(shape[1])).astype(np.float32)
    return out


def model_folder(folder: Path, weights: dict[str, np.ndarray]) -> Path:
    """The tiny model's configuration and tokenizer with other weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", *TOKENIZER_FILES):
        shutil.copyfile(MODEL / name, folder / name)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def spec(work: Path, model: Path, lesson: Lesson) -> dict:
    """The order for `python -m jora_core.commands.train`."""
    return {
        "model": str(model),
        "init": "pretrained",
        "trainable": "all",
        "data": {
            "records": str(work / "rows.parquet"),
            "max_seq_len": lesson.max_seq_len,
            "tokens_per_batch": lesson.tokens_per_batch,
            "curriculum": "file",
        },
        "optim": {
            "learning_rate": lesson.learning_rate,
            "warmup_ratio": 0.04,
            "beta2": 0.95,
            "weight_decay": 0.02,
            "min_lr_ratio": 0.1,
            "schedule": lesson.schedule,
        },
        "n_epochs": 1,
        "checkpoint_every": 200,
        "seed": 1,
        "output_dir": str(work / "output"),
        "checkpoint_dir": str(work / "checkpoints"),
        "compilation_cache_dir": str(work.parent / "compiled"),
    }


def take(work: Path, model: Path, lesson: Lesson) -> dict[str, np.ndarray]:
    """Train one lesson, or go on with it, or read what came of it; returns the weights."""
    learned = work / "output" / "model.safetensors"
    if not (work / "output" / "result.json").is_file():
        if not (work / "rows.parquet").is_file():
            write_rows(work / "rows.parquet", rows_of(lesson, seed=1))
        order = work / "spec.json"
        order.write_text(json.dumps(spec(work, model, lesson), indent=2))
        subprocess.run([sys.executable, "-m", "jora_core.commands.train", "--spec", str(order)], check=True)
    return load_file(learned)


def loss_curve(log: Path, points: int = 10) -> str:
    """A Markdown table of the mean loss over `points` equal stretches of the run."""
    losses = [json.loads(line)["loss"] for line in log.read_text().splitlines()]
    size = max(1, len(losses) // points)
    rows = [
        f"| {start + 1}–{min(start + size, len(losses))} | {sum(part) / len(part):.3f} |"
        for start in range(0, len(losses), size)
        if (part := losses[start : start + size])
    ]
    return "\n".join(["| steps | mean loss |", "| --- | --- |", *rows])


def note(work: Path) -> str:
    """How the weights were made, from what the runs themselves wrote down."""
    parts = [
        "# How this model was made\n",
        f"`python data/make_base.py` on {platform.machine()}: a Llama of random weights that took the "
        "lessons of `data/make_base_corpus.py`. None of them asks which post a comment answers.\n",
    ]
    for lesson in LESSONS:
        output = work / lesson.name / "output"
        result = json.loads((output / "result.json").read_text())
        parts += [
            f"## {lesson.name}\n",
            f"{result['steps']:,} steps, {result['seconds'] / 60:.0f} minutes, {result['tokens']:,} tokens, "
            f"of which {result['supervised_tokens']:,} supervised.\n",
            loss_curve(output / "metrics.jsonl") + "\n",
        ]
    return "\n".join(parts)


def main(work: Path) -> None:
    if not (MODEL / "tokenizer.json").is_file():
        subprocess.run([sys.executable, str(HERE / "make_tokenizer.py")], check=True)
    rng = np.random.default_rng(1)
    weights = first_weights(json.loads((MODEL / "config.json").read_text()), rng)
    for number, lesson in enumerate(LESSONS):
        if number == 1:
            weights = grown(weights, rng)
        folder = work / lesson.name
        weights = take(folder, model_folder(folder / "before", weights), lesson)
    save_file(weights, MODEL / "model.safetensors", {"format": "pt"})
    (MODEL / "TRAINING.md").write_text(note(work), encoding="utf-8")
    print(f"wrote {MODEL}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / ".base")
    main(parser.parse_args().work.resolve())
