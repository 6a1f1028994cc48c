"""What the stage `evaluate` costs on the embedded sample: 2,500 comments, three models, on the processor.

    python tests/benchmarks/evaluation/evaluation_stage.py [--records 2500] [--profile] [--json FILE]

The stage itself runs, as the pipeline runs it: `flows/configs/sample.yaml` with all its baselines, threads
only, and adapters of random weights in place of trained ones, because the time does not depend on them. It
runs twice with one cache of compiled programs: the first run compiles, the second one is what an evaluation
of new adapters costs. Seconds of the processor are those of all cores and of the child processes. With
--profile, the stage runs once more, and the functions of its own process that take longest are printed.

Goal: under 30 seconds on two idle cores.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of harness and sides

from harness import ROOT, at_least_one, machine, print_table, write_result

from flows.configuration.load import load_config
from flows.engine.stage import StageContext
from flows.stages import evaluate
from jora_core.specs.lora import LoraSpec
from retrieval.build.build import build_record_files

RECIPE = ROOT / "flows" / "configs" / "sample.yaml"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Processor time of the evaluation of the sample")
    parser.add_argument("--records", type=at_least_one, default=2500)
    parser.add_argument("--profile", action="store_true", help="print the functions that take longest")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    about = machine()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(Path(folder), args.records, args.profile)
    print_table(
        [
            {
                "Run": result["run"],
                "Records": f"{result['records']:,}",
                "Wall, s": f"{result['seconds']:.1f}",
                "Processor, s": f"{result['processor_seconds']:.1f}",
                "of it answering, s": f"{result['child_seconds']:.1f}",
                "and scoring, s": f"{result['own_seconds']:.1f}",
            }
            for result in results
        ]
    )
    ratios = {"first/second": results[0]["processor_seconds"] / results[1]["processor_seconds"]}
    write_result(args.json, about, {"records": args.records}, results, ratios)


def measure(folder: Path, records: int, profile: bool) -> list[dict[str, Any]]:
    """Build the records and two adapters, and run the stage twice.

    Args:
        folder: empty folder.
        records: number of comments to evaluate, at most.
        profile: whether to run once more with a profile, which is printed.
    """
    threads_only = ("evaluate.tables_max_records=0", "evaluate.qa_max_records=0")
    changes = (f"store={folder / 'store'}", f"evaluate.max_records={records}")
    config = load_config(RECIPE, (*threads_only, *changes))
    built = folder / "built"
    built.mkdir()
    build_record_files(config.context.model_copy(update={"tables": None, "qa": None}), built)
    adapters = {phase.stage: folder / phase.stage for phase in config.phases}
    for number, place in enumerate(adapters.values()):
        write_adapter(Path(config.model.path), place, number)
    context = StageContext(
        config=config,
        key="0" * 64,
        output_dir=folder / "output",
        work_dir=folder / "work",
        cache_dir=folder / "cache",
        upstream={"build-context": built, "convert-model": built, **adapters},
        manifests={"convert-model": {"key": "0" * 64}},
        # Without the cache of answers: another adapter is never in it.
        fresh=True,
    )
    found = [run(context, name) for name in ("first", "second")]
    if profile:
        watch = cProfile.Profile()
        watch.runcall(run, context, "profiled")
        pstats.Stats(watch).sort_stats("cumulative").print_stats(45)
    return found


def write_adapter(model: Path, folder: Path, seed: int) -> None:
    """Write a LoRA adapter of the recipe's default shape with random weights."""
    import jax

    from jora_core.architecture.model_config import ModelConfig
    from jora_core.parameters.initialize import init_adapter
    from jora_core.weights.adapter_folder import save_adapter

    spec = LoraSpec()
    adapter = init_adapter(ModelConfig.from_hf(model), spec, jax.random.key(seed))
    # A new adapter has no effect: B is zero.
    weights = {
        name: replace(lora, b=0.01 * jax.random.normal(jax.random.key(seed + 1), lora.b.shape))
        for name, lora in adapter.weights.items()
    }
    save_adapter(replace(adapter, weights=weights), folder, spec, "tiny-llama")


def run(context: StageContext, name: str) -> dict[str, Any]:
    """Run the stage once and return what it took."""
    for folder in (context.output_dir, context.work_dir, context.cache_dir):
        folder.mkdir(exist_ok=True)
    begun, own, children = time.perf_counter(), time.process_time(), of_children()
    found = evaluate.EVALUATE.run(context)
    own, children = time.process_time() - own, of_children() - children
    return {
        "run": name,
        "records": found["predict"]["threads"]["records"],
        "systems": found["predict"]["threads"]["systems"],
        "seconds": time.perf_counter() - begun,
        "processor_seconds": own + children,
        "own_seconds": own,
        "child_seconds": children,
    }


def of_children() -> float:
    """Return the processor seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
