"""Does a model help the learned fusion by how likely it writes a message as the answer to each candidate?

    jora fetch smollm2-135m
    python tests/benchmarks/training/reply_likelihood.py --json out.json       # not timed as a whole

The tuned model of flows/configs/smollm2-irc.yaml names the answered message. Here the model is asked the
other way around: the prompt has one candidate, and the score is the log-likelihood of the message that was
written, divided by the root of its tokens. The base model is scored, and one after `--steps` steps of
learning to write answers. Score and fusion are added with two weights, fitted by maximum likelihood on
training messages that the model has not seen (`retrieval.evaluation.combined_answers`). The development
logs decide nothing. Differences to the fusion alone are paired; their intervals resample logs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of harness and sides

import numpy as np
import pyarrow.parquet as pq
from harness import at_least_one, machine, print_table, write_result
from training.real_learning import artifact_folder, run_jora

from flows.children.run_child import run_child
from flows.commands.models.fetch import fetch_model
from flows.stages.evaluate import write_drawn
from jora_core.data.tokenizer import TextTokenizer, load_tokenizer
from jora_core.specs.answers import PredictSpec
from jora_core.specs.data import DataSpec
from jora_core.specs.prompts.settings import PromptSpec
from jora_core.specs.train import TrainSpec
from retrieval.evaluation.combined_answers import Weights, fit_weights
from retrieval.evaluation.context_bootstrap import ContextBootstrap

Row = Mapping[str, Any]
MODEL = "smollm2-135m"
INSTRUCTION = "Write an answer to this message of a chat."
RESAMPLES = 2000
LEARNING = {
    "lora": {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"},
    "optim": {"learning_rate": 5e-4, "schedule": "cosine", "warmup_ratio": 0.05},
    "remat": "none",
    "checkpoint_every": 1000,
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, settings, results, ratios")
    parser.add_argument("--steps", type=at_least_one, default=240, help="steps of 1,024 tokens (default 240)")
    parser.add_argument(
        "--fitted", type=at_least_one, default=600, help="training messages for the weights (default 600)"
    )
    parser.add_argument("--records", type=at_least_one, help="development messages; all 2,029 if left out")
    parser.add_argument("--store", type=Path, help="folder of the artifacts, to go on where a run ended")
    return parser.parse_args()


def main() -> int:
    """Measure, print, write."""
    args = arguments()
    about = machine()
    with tempfile.TemporaryDirectory() as name:
        folder = (args.store or Path(name)).resolve()
        results = measure(args, folder)
    print_table([_row(result) for result in results])
    settings = {"steps": args.steps, "fitted": args.fitted, "records": args.records}
    write_result(args.json, about, settings, results, {})
    return 0


def measure(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Train, score and combine; return the results of fusion, base and tuned model."""
    settings = {"store": str(folder / "store")}
    model = fetch_model(MODEL)
    built = artifact_folder(run_jora("context", settings), "build-context")
    rows = pq.read_table(built / "records.parquet").to_pylist()
    draw = np.random.default_rng(0)
    training = [row for row in rows if row["split"] == "train"]
    held_out = [row for row in rows if row["split"] != "train"]
    order = draw.permutation(len(training))
    fitted = [training[number] for number in order[: args.fitted]]
    taught = [training[number] for number in order[args.fitted :]]
    held_out = [held_out[number] for number in np.sort(draw.permutation(len(held_out))[: args.records])]
    adapter = train(model, taught, args.steps, folder / "train")
    scores = likelihoods(model, adapter, [*fitted, *held_out], folder / "predict")
    results = [compared("learned fusion alone", held_out, None, Weights(0.0, 1.0, 0))]
    for system, found in scores.items():
        answers = [{"id": name, "choice_logprobs": values} for name, values in found.items()]
        weights = fit_weights(fitted, answers)
        results.append(compared(f"fusion and {system}", held_out, found, weights))
    return results


def candidates_of(row: Row) -> tuple[list[tuple[str, str]], str, str]:
    """Return (author, text) of the messages in a prompt, and the author and text of the answer."""
    body, place, found = row["input"], 0, []
    for label in row["choices"]:
        end = body.index(f"\n{label}\n\n", place)
        found.append((label.split(" ", 1)[1], body[place:end]))
        place = end + len(f"\n{label}\n\n")
    author, _, text = body[place:].removeprefix("Comment by ").partition(": ")
    return found, author, text


def pairs_of(row: Row, split: str) -> list[dict[str, Any]]:
    """Return a record for each message in a prompt: it is the input, and the answer to it is the choice."""
    found, author, text = candidates_of(row)
    return [
        {
            **row,
            "id": f"{row['id']}/{number}",
            "split": split,
            "instruction": INSTRUCTION,
            "input": f"{writer}: {said}\n\nAnswer by {author}:",
            "output": text,
            "gold": [text],
            "choices": [text],
            "context_id": f"{row['id']}/{number}",
        }
        for number, (writer, said) in enumerate(found)
    ]


def train(model: Path, rows: Sequence[Row], steps: int, folder: Path) -> Path:
    """Teach the model to write the answers; return the adapter's folder."""
    taught = [
        pair
        for row in rows
        for pair, label in zip(pairs_of(row, "train"), row["choices"], strict=True)
        if label in row["gold"]
    ]
    records = write_records(taught, folder)
    spec = TrainSpec.model_validate(
        {
            "model": model,
            "data": DataSpec(records=records, prompt=PromptSpec(), max_seq_len=256, tokens_per_batch=1024),
            "max_steps": steps,
            "output_dir": folder / "adapter",
            "checkpoint_dir": folder / "checkpoints",
            **LEARNING,
        }
    )
    run_child("train", spec, folder)
    return folder / "adapter"


def likelihoods(
    model: Path, adapter: Path, rows: Sequence[Row], folder: Path
) -> dict[str, dict[str, list[float]]]:
    """Return, by system and record, how likely each candidate makes the message that was written."""
    pairs = [pair for row in rows for pair in pairs_of(row, "test")]
    spec = PredictSpec(
        model=model,
        records=write_records(pairs, folder),
        prompt=PromptSpec(),
        systems={"base model": None, "tuned model": adapter},
        mode="choice",
        max_seq_len=256,
        tokens_per_batch=4096,
        output_dir=folder,
    )
    run_child("predict", spec, folder)
    tokenizer = load_tokenizer(model)
    root = {pair["id"]: _root_of_tokens(tokenizer, pair["output"]) for pair in pairs}
    found: dict[str, dict[str, list[float]]] = {}
    for row in pq.read_table(folder / "predictions.parquet").to_pylist():
        name = row["id"].rpartition("/")[0]
        score = row["choice_logprobs"][0] / root[row["id"]]
        found.setdefault(row["system"], {}).setdefault(name, []).append(score)
    return found


def _root_of_tokens(tokenizer: TextTokenizer, text: str) -> float:
    # With the end token.
    return float(np.sqrt(len(tokenizer.encode(text)) + 1))


def write_records(rows: Sequence[Row], folder: Path) -> Path:
    """Write records for a child process, and return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "records.parquet"
    write_drawn(rows, path)
    return path


def compared(
    system: str, rows: Sequence[Row], found: Mapping[str, list[float]] | None, weights: Weights
) -> dict[str, Any]:
    """Return reply@1 and log-loss of fusion and model together, and their differences to the fusion alone.

    Args:
        system: name of the row.
        rows: the held-out records.
        found: scores of the candidates by record; None for the fusion alone.
        weights: of both.
    """
    right, loss = (np.zeros((len(rows), 2)) for _ in range(2))
    for number, row in enumerate(rows):
        fusion = np.array(row["choice_scores"])
        together = weights.learned * fusion
        if found is not None:
            together = together + weights.model * np.array(found[row["id"]])
        gold = np.isin(row["choices"], row["gold"])
        for side, scores in enumerate((together, fusion)):
            right[number, side] = gold[np.argmax(scores)]
            log_p = scores - np.logaddexp.reduce(scores)
            loss[number, side] = -np.logaddexp.reduce(log_p[gold]) if gold.any() else np.nan
    bootstrap = ContextBootstrap.over([row["context_id"] for row in rows], 0, RESAMPLES)
    inside = ~np.isnan(loss[:, 0])
    return {
        "system": system,
        "weights": [weights.model, weights.learned],
        "reply@1": bootstrap.ratio(right[:, 0], np.ones(len(rows))),
        "difference": bootstrap.difference(right[:, 0], right[:, 1]),
        "right_alone": [int((right[:, 0] > right[:, 1]).sum()), int((right[:, 0] < right[:, 1]).sum())],
        "log_loss": float(loss[inside, 0].mean()),
        "log_loss_difference": _mean_difference(bootstrap, inside, np.subtract(*loss.T)),
    }


def _mean_difference(bootstrap: ContextBootstrap, counts: np.ndarray, values: np.ndarray) -> list[float]:
    """Return a mean difference and the percentiles of its resamples, 2.5 and 97.5."""
    contexts = bootstrap.draws.shape[1]
    sums = np.bincount(bootstrap.membership[counts], values[counts], contexts)
    numbers = np.bincount(bootstrap.membership[counts], minlength=contexts)
    resampled = (bootstrap.draws @ sums) / (bootstrap.draws @ numbers)
    return [float(sums.sum() / numbers.sum()), *np.percentile(resampled, [2.5, 97.5]).tolist()]


def _row(result: Mapping[str, Any]) -> dict[str, str]:
    score, difference = result["reply@1"], result["difference"]
    mean, low, high = result["log_loss_difference"]
    return {
        "System": result["system"],
        "Weights": " and ".join(f"{weight:.2f}" for weight in result["weights"]),
        "reply@1": f"{score['value']:.3f} ({score['low']:.3f}-{score['high']:.3f})",
        "Difference": f"{difference['value']:+.3f} ({difference['low']:+.3f} to {difference['high']:+.3f})",
        "Right alone": " and ".join(map(str, result["right_alone"])),
        "Log-loss": f"{result['log_loss']:.4f}",
        "Its difference": f"{mean:+.4f} ({low:+.4f} to {high:+.4f})",
    }


if __name__ == "__main__":
    raise SystemExit(main())
