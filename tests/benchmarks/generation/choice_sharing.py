"""Constrained choice: questions a second with contexts shared, apart, and one by one.

    python tests/benchmarks/generation/choice_sharing.py [--model FOLDER] [--threads 3] [--questions 20]
        [--json FILE]

Threads as the evaluation asks them: a window of posts, and comments that each ask for one of the last posts.
All questions of a thread have the same window, so sharing reads it once. Three ways of the same scores:
shared (`sharing: auto`), apart (`sharing: off`, several questions in a batch) and one by one (one question in
a batch). The way to be fastest, in tokens, is (window + own) / (window / questions + own), where own is the
comment and its choices; the window of 2,000 tokens with 8 choices allows 13 times. The sides take turns, the
first round is not counted, and all must agree within 1e-4 before anything is timed. Beside the wall time is
the processor time of the process, of all cores together, which other work on the machine changes less; ratios
of both are printed.

Without --model, a random Llama of 58M parameters answers, or of fewer --layers: the time does not depend on
the weights. Goal: 8 times as many questions a second as one by one, on threads with 20 questions.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of harness and sides

import numpy as np
from harness import at_least_one, machine, print_table, write_result
from sides.workload import write_config

END = 2
COMMENT = 20  # tokens of a comment
LABEL = 4  # tokens of a choice, without the end
SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="model folder; a random one if not given")
    parser.add_argument("--layers", type=at_least_one, default=8, help="of the random model")
    parser.add_argument("--threads", type=at_least_one, default=3)
    parser.add_argument("--questions", type=at_least_one, default=20, help="of each thread")
    parser.add_argument("--window", type=at_least_one, default=2000, help="tokens of the posts of a thread")
    parser.add_argument("--choices", type=at_least_one, default=8, help="of each question")
    parser.add_argument("--tokens-per-batch", type=at_least_one, default=8192)
    parser.add_argument("--rounds", type=at_least_one, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    args = arguments()
    about = machine()
    settings = {name: value for name, value in vars(args).items() if name not in ("json", "model")}
    settings["model"] = str(args.model.name) if args.model else "random"
    with tempfile.TemporaryDirectory() as folder:
        results = measure(args.model or random_model(Path(folder), args.layers), settings)
    print_table(
        [
            {
                "Side": result["side"],
                "Questions/s": f"{result['questions_per_second']:.2f}",
                "Median, s": f"{result['seconds']:.2f}",
                "Processor, s": f"{result['processor_seconds']:.2f}",
                "Token slots": f"{result['slots']:,}",
            }
            for result in results
        ]
    )
    by_side = {result["side"]: result for result in results}
    ratios = {
        f"shared/{side}, {what}": by_side[side][key] / by_side["shared"][key]
        for side in ("apart", "one by one")
        for what, key in (("wall time", "seconds"), ("processor time", "processor_seconds"))
    }
    print(", ".join(f"{name}: {ratio:.1f} times" for name, ratio in ratios.items()))
    write_result(args.json, about, settings, results, ratios)


def random_model(folder: Path, layers: int) -> Path:
    """Write a random float32 Llama with a vocabulary of 32,000; of 8 layers it has 58M parameters."""
    import jax

    from jora_core.architecture.model_config import ModelConfig
    from jora_core.parameters.initialize import init_params
    from jora_core.weights.checkpoint_folder import save_params

    write_config(folder, SHAPE | {"num_hidden_layers": layers}, 8192)
    config = ModelConfig.from_hf(folder)
    save_params(jax.jit(lambda key: init_params(config, key))(jax.random.key(0)), config, folder)
    return folder


def measure(folder: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Score the choices in three ways, in turns.

    Raises:
        SystemExit: the ways give different scores.
    """
    import jax

    from jora_core.architecture.model_config import ModelConfig
    from jora_core.data.row_packing import ROW_STEP
    from jora_core.generation.choice_scores import score_choices
    from jora_core.generation.choice_trees import Question, group_choices, plan_choices
    from jora_core.parallel.mesh import make_mesh
    from jora_core.weights.load_params import load_params

    config = ModelConfig.from_hf(folder)
    asked = questions(config.vocab_size, settings)
    budget = settings["tokens_per_batch"]
    with jax.set_mesh(make_mesh(1, 1)):
        params = load_params(folder, config)

        def scores_of(some: list[Question], most: int, share: bool = True) -> list[np.ndarray]:
            plan = plan_choices(some, most, share=share)
            return [] if plan is None else score_choices(params, config, plan)

        def scores(share: bool) -> list[np.ndarray]:
            return scores_of(asked, budget, share)

        # Room for one question and no more: a batch is padded to its budget, which would be counted against
        # this side.
        longest = max(group.slots for group in group_choices(asked, budget, share=False)[1])
        own = -(-longest // ROW_STEP) * ROW_STEP

        def one_by_one() -> list[np.ndarray]:
            return [scores_of([question], own)[0] for question in asked]

        sides: dict[str, Callable[[], list[np.ndarray]]] = {
            "shared": lambda: scores(True),
            "apart": lambda: scores(False),
            "one by one": one_by_one,
        }
        # The first round compiles, and shows that all sides compute the same.
        found = {name: np.concatenate(side()) for name, side in sides.items()}
        for name, values in found.items():
            if not np.allclose(values, found["shared"], rtol=0, atol=1e-4):
                raise SystemExit(
                    f"the sides disagree: {name} by {np.abs(values - found['shared']).max():.2e}"
                )
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        processor: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(settings["rounds"]):
            for name, side in sides.items():
                begun, worked = time.perf_counter(), time.process_time()
                side()
                seconds[name].append(time.perf_counter() - begun)
                processor[name].append(time.process_time() - worked)
    slots = {share: sum(g.slots for g in group_choices(asked, budget, share)[1]) for share in (True, False)}
    return [
        {
            "side": name,
            "seconds": statistics.median(times),
            "processor_seconds": statistics.median(processor[name]),
            "questions_per_second": len(asked) / statistics.median(times),
            "slots": slots[name == "shared"],
        }
        for name, times in seconds.items()
    ]


def questions(vocabulary: int, settings: dict[str, Any]) -> list[Any]:
    """Make the questions of all threads, from random tokens."""
    from jora_core.generation.choice_trees import Question

    rng = np.random.default_rng(0)

    def tokens(size: int) -> np.ndarray:
        return rng.integers(3, vocabulary, size, dtype=np.int32)

    found = []
    for thread in range(settings["threads"]):
        window = tokens(settings["window"])
        labels = [tokens(LABEL) for _ in range(settings["choices"])]
        ended = tuple(np.append(label, np.int32(END)) for label in labels)
        names = tuple(f"#{place + 1}" for place in range(len(labels)))
        for number in range(settings["questions"]):
            prompt = np.concatenate([window, tokens(COMMENT)])
            found.append(Question(f"{thread}-{number}", prompt, names, ended, str(thread)))
    return found


if __name__ == "__main__":
    main()
