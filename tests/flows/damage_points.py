"""Damage files of a small project 200 times, and compare what comes of it with the project left alone:
`python -m tests.flows.damage_points [--folder build/damage-points] [--seed 0] [--quick]` (ten to twenty
minutes on two cores).

Bits are flipped, files truncated or deleted: of artifacts, of the checkpoints of a training that was stopped,
of the work folder of a build that was stopped, and of all caches. Each damage must be noticed (a line names
the file, or the file is written again), each must be recovered from, and none may change a result: records,
adapter and answers are compared bit by bit. Damages whose checks are separate share one run. The last lines
are the table of docs/reliability.md. Ends with 1 if a damage was not noticed or a result is another one.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import random
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import orbax.checkpoint as ocp

from flows.configuration.load import load_config
from flows.configuration.schema import PipelineConfig
from flows.engine.artifact_store import Store
from flows.engine.keys import identify
from flows.engine.plan import make_plan
from flows.engine.run_stage import run_stages
from flows.engine.stage import StageContext, stages_of
from flows.stages import STAGES
from flows.stages.finetune import train_spec
from jora_core.base.digests import file_digest
from jora_core.base.digests import whole as is_whole
from jora_core.parallel.program_cache import unsealed
from jora_core.specs.train import TrainSpec
from jora_core.training.metrics_log import MetricsLog
from jora_core.training.train import train
from retrieval.build.build import build_record_files
from retrieval.build.shards import build_numbered, prepare
from retrieval.settings.context import ContextConfig
from tests.flows.damage import KINDS, damage
from tests.flows.orchestration.serving.small_project import write_project

ROOT = Path(__file__).resolve().parents[2]
PHASE = "finetune-structure"
STEPS, EVERY, STOP_AFTER = 6, 2, 5
SETTINGS = (
    f"context.embedder={ROOT / 'data' / 'tiny-embedder'}",
    "context.qa.legs=[bm25,dense]",
    "context.shard_records=2",
    f"phases.0.max_steps={STEPS}",
    f"phases.0.checkpoint_every={EVERY}",
)
# Times and paths, which differ from run to run, and a list of all files with their digests.
UNLIKE = {"manifest.json", "result.json", "metrics.jsonl", "lineage.json"}
# Orbax gives the files of a checkpoint random names, so its arrays are compared.
CHECKPOINT = "state"


@dataclass(frozen=True)
class Rounds:
    """How often each part is damaged and run; the defaults make 204 damages.

    Attributes:
        pipeline: whole runs, each after damage of five artifacts and two files of answers.
        training: trainings that go on, each after damage of a checkpoint and of a compiled program, and each
            second time of the token ids.
        prepared: builds that go on, each after damage of a prepared file or an index, and of vectors.
        shards: builds that go on, each after damage of a finished shard.
    """

    pipeline: int = 6
    training: int = 44
    prepared: int = 20
    shards: int = 12


# Place, file, kind, and whether the damage was noticed.
Struck = tuple[str, Path, str, Callable[["Lines"], bool]]


class Stopped(BaseException):
    """Stands for a kill: nothing in the loop may catch it."""


@dataclass
class Tally:
    """What was damaged, and what came of it, by place and kind."""

    damages: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    unnoticed: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)

    def add(self, place: str, kind: str, path: Path, noticed: bool) -> None:
        """Count one damage."""
        self.damages[place, kind] += 1
        if not noticed:
            self.unnoticed.append(f"{place}: {kind} of {path}")

    def compare(self, place: str, path: Path, same: bool) -> None:
        """Note a result that is not that of the project left alone."""
        if not same:
            self.changed.append(f"{place}: {path}")

    def table(self) -> str:
        """Return the Markdown table of docs/reliability.md."""
        lines = [f"| Place | {' | '.join(KINDS)} | not noticed | other result |", "|---|" + "---:|" * 5]
        for place in dict.fromkeys(name for name, _ in self.damages):
            counts = [str(self.damages[place, kind]) for kind in KINDS]
            faults = [
                str(sum(line.startswith(f"{place}:") for line in found))
                for found in (self.unnoticed, self.changed)
            ]
            lines.append(f"| {place} | {' | '.join([*counts, *faults])} |")
        sums = [str(sum(n for (_, k), n in self.damages.items() if k == kind)) for kind in KINDS]
        lines.append(f"| all | {' | '.join([*sums, str(len(self.unnoticed)), str(len(self.changed))])} |")
        return "\n".join(lines)

    @property
    def total(self) -> int:
        """Number of damages."""
        return sum(self.damages.values())


class Lines(logging.Handler):
    """Keeps the warnings of a block."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())

    def name(self, path: Path) -> bool:
        """Whether a warning names a file."""
        return any(str(path) in text for text in self.texts)


@contextmanager
def warnings() -> Iterator[Lines]:
    """Collect the warnings about caches and checkpoints during the block."""
    lines = Lines()
    logger = logging.getLogger("jora")
    logger.addHandler(lines)
    try:
        yield lines
    finally:
        logger.removeHandler(lines)


class Damages:
    """Draws kinds in turn and files at random, so that each seed damages other places."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._turns: dict[str, int] = defaultdict(int)

    def strike(self, place: str, files: list[Path]) -> tuple[Path, str]:
        """Damage one of the files; return it, and the kind of damage."""
        path = self._rng.choice(sorted(files))
        # In turn for each place; an empty file can only be deleted.
        kind = KINDS[self._turns[place] % len(KINDS)] if path.stat().st_size else "delete"
        self._turns[place] += 1
        damage(path, kind, self._rng.randrange(2**32))
        return path, kind


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def results(store: Store) -> dict[str, str]:
    """Return the digest of each file and checkpoint that must not change, by its path without the key."""
    found = {}
    for stage in STAGES:
        for path in files_of(store.root / stage):
            below = path.relative_to(store.root / stage).parts[1:]
            if "steps" not in below:
                if path.name not in UNLIKE:
                    found[f"{stage}/{'/'.join(below)}"] = file_digest(path)
            elif path.parent.name == CHECKPOINT and path.name == "manifest.ocdbt":
                found[f"{stage}/{'/'.join(below[:-1])}"] = digest_of_arrays(path.parent)
    return found


def digest_of_arrays(checkpoint: Path) -> str:
    """Return a digest of the names, types, shapes and bits of a checkpoint's arrays."""
    found = hashlib.sha256()
    with ocp.StandardCheckpointer() as reader:
        leaves = jax.tree_util.tree_leaves_with_path(reader.restore(checkpoint))
    for name, leaf in leaves:
        array = np.asarray(leaf)
        found.update(f"{jax.tree_util.keystr(name)} {array.dtype} {array.shape}\n".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def run(config: PipelineConfig, store: Store) -> dict[str, str]:
    """Run the whole pipeline as `jora run` does, without Prefect; return why each stage ran."""
    names = [stage.name for stage in stages_of(config, STAGES)]
    return {item.stage: item.reason for item in run_stages(names, config, store, STAGES) if item.reason}


def copy(source: Path, target: Path) -> Path:
    """Put a fresh copy of a folder in place of what an earlier round left."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target


def damage_artifacts(
    config: PipelineConfig, folder: Path, damages: Damages, tally: Tally, rounds: Rounds
) -> None:
    """Damage one file of each artifact and two of the cached answers in each round, and run the pipeline."""
    whole = results(Store(config.store))
    for _ in range(rounds.pipeline):
        store = Store(copy(Path(config.store), folder / "artifacts"))
        mine = config.model_copy(update={"store": str(store.root)})
        struck = {
            stage.name: damages.strike("artifacts", files_of(store.root / stage.name))
            for stage in stages_of(mine, STAGES)
        }
        answers = sorted((store.cache_dir / "answers").glob("*.parquet"))
        cached = []
        for path in answers:
            victim, kind = damages.strike("cached answers", [path, path.with_name(f"{path.name}.sha256")])
            cached.append((victim, kind, path))
        # The plan says it before anything runs.
        reasons = {line.name: line.reason for line in make_plan(mine, store, STAGES)}
        for stage, (path, kind) in struck.items():
            key = identify(mine, STAGES)[stage].key
            name = path.relative_to(store.path(stage, key)).as_posix()
            tally.add("artifacts", kind, path, reasons[stage] == f"artifact damaged: {name}")
        with warnings() as said:
            ran = run(mine, store)
        for path, kind, answer in cached:
            noticed = (kind == "delete" or said.name(answer)) and is_whole(answer)
            tally.add("cached answers", kind, path, noticed)
        after = results(store)
        for name in sorted({*whole, *after}):
            tally.compare("artifacts", store.root / name, whole.get(name) == after.get(name))
        tally.compare("artifacts", store.root, set(ran) == set(struck) and not run(mine, store))


def stopped_training(config: PipelineConfig, folder: Path) -> TrainSpec:
    """Train until after a checkpoint, as a kill leaves it; return the spec of the training."""
    store = Store(config.store)
    identities = identify(config, STAGES)
    context = StageContext(
        config=config,
        key=identities[PHASE].key,
        output_dir=folder / "output",
        work_dir=folder / "work",
        cache_dir=folder / "cache",
        upstream={name: store.path(name, key) for name, key in identities[PHASE].upstream.items()},
        manifests={},
    )
    write = MetricsLog.write

    def deadly(self: MetricsLog, row: dict[str, Any]) -> None:
        write(self, row)
        if row["step"] == STOP_AFTER:
            raise Stopped

    # A folder of our own, so that the cache holds what a training makes and nothing else.
    spec = train_spec(context, PHASE)
    with mock.patch.object(MetricsLog, "write", deadly):
        try:
            train(spec, verbose=False)
        except Stopped:
            return spec
    raise RuntimeError(f"the training did not reach step {STOP_AFTER}")


def damage_checkpoints(
    config: PipelineConfig, folder: Path, damages: Damages, tally: Tally, rounds: Rounds
) -> None:
    """Damage the newest checkpoint, a compiled program and sometimes the token ids, and go on training."""
    spec = stopped_training(config, folder / "training")
    kept = folder / "training-kept"
    shutil.copytree(folder / "training", kept)
    whole = file_digest(next((Path(config.store) / PHASE).glob("*/adapter_model.safetensors")))
    checkpoints = spec.checkpoint_dir
    # Programs of a step that goes on. Those that only a first start needs would not be read.
    used = _programs_read(spec, kept, folder / "training")
    for number in range(rounds.training):
        copy(kept, folder / "training")
        newest = max((checkpoints / "steps").iterdir(), key=lambda path: int(path.name))
        state = [*files_of(newest), checkpoints / "metrics.jsonl", checkpoints / "digest"]
        struck, kind = damages.strike("checkpoints", state)
        program, program_kind = damages.strike("compiled programs", used)
        tokens = damages.strike("token ids", files_of(spec.data.cache_dir or folder)) if number % 2 else None
        with warnings() as said:
            result = train(spec, verbose=False)
        noticed = struck.name == "digest" or f"step {newest.name} is damaged" in str(
            result.get("damaged_checkpoints")
        )
        tally.add("checkpoints", kind, struck, noticed)
        # An entry that exists is never replaced, so one that is whole again was found to be damaged.
        tally.add(
            "compiled programs",
            program_kind,
            program,
            program.is_file() and unsealed(program.read_bytes()) is not None,
        )
        if tokens:
            path = tokens[0].with_name(tokens[0].name.removesuffix(".sha256"))
            noticed = (tokens[1] == "delete" or said.name(path)) and is_whole(path)
            tally.add("token ids", tokens[1], tokens[0], noticed)
        adapter = spec.output_dir / "adapter_model.safetensors"
        tally.compare("checkpoints", adapter, file_digest(adapter) == whole)


def _programs_read(spec: TrainSpec, kept: Path, folder: Path) -> list[Path]:
    """Return the entries of the program cache that a training which goes on reads or writes."""
    copy(kept, folder)
    cache = spec.compilation_cache_dir
    assert cache is not None
    shutil.rmtree(cache)
    train(spec, verbose=False)
    return files_of(cache)


def stopped_build(context: ContextConfig, work: Path) -> None:
    """Prepare the corpora and build all shards but the last, as a kill leaves it."""
    prepared = prepare(context, work, lambda *_: None)
    for shard in prepared.shards[:-1]:
        build_numbered(context, work, shard.number)


def damage_builds(
    config: PipelineConfig, folder: Path, damages: Damages, tally: Tally, rounds: Rounds
) -> None:
    """Damage prepared corpora, indexes, cached vectors and shards of a stopped build, and go on."""
    vectors = folder / "vectors"
    context = config.context.model_copy(update={"embedding_cache": str(vectors)})
    work, output = folder / "build" / "work", folder / "build" / "output"
    stopped_build(context, work)
    kept, kept_vectors = folder / "build-kept", folder / "vectors-kept"
    shutil.copytree(work, kept)
    shutil.copytree(vectors, kept_vectors)
    whole = {path.name: file_digest(path) for path in files_of(Path(config.store) / "build-context")}

    def finish(strike: Callable[[], list[Struck]]) -> None:
        copy(kept, work)
        copy(kept_vectors, vectors)
        shutil.rmtree(output, ignore_errors=True)
        struck = strike()
        with warnings() as said:
            build_record_files(context, output, work_dir=work)
        for place, path, kind, noticed in struck:
            tally.add(place, kind, path, noticed(said))
        for name in ("records.parquet", "rankings.parquet", "links.parquet"):
            tally.compare(struck[0][0], output / name, file_digest(output / name) == whole[name])

    def prepared(index: bool) -> list[Struck]:
        place = "indexes" if index else "prepared corpora"
        files = [path for path in files_of(work) if "shards" not in path.parts]
        path, kind = damages.strike(place, [file for file in files if _is_index(file) == index])
        # Without its description a folder counts as not prepared, as a kill before its end leaves it.
        silent = path.name == "prepared.json" and kind == "delete"
        vector, vector_kind = damages.strike("cached vectors", files_of(vectors))
        before = file_digest(kept_vectors / vector.relative_to(vectors))
        return [
            (place, path, kind, lambda said: silent or said.name(path)),
            (
                "cached vectors",
                vector,
                vector_kind,
                lambda _: vector.is_file() and file_digest(vector) == before,
            ),
        ]

    def shard() -> list[Struck]:
        path, kind = damages.strike("shards", files_of(work / "shards"))
        done = path.with_name(f"{'.'.join(path.name.split('.')[:-2])}.done.json")
        # As above: without its last file a shard counts as not finished.
        silent = path == done and kind == "delete"
        return [("shards", path, kind, lambda said: silent or said.name(done))]

    for number in range(rounds.prepared):
        finish(lambda index=bool(number % 2): prepared(index))
    for _ in range(rounds.shards):
        finish(shard)


def _is_index(path: Path) -> bool:
    return "bm25" in path.parts or path.suffix == ".faiss" or path.name.startswith("id-")


def main(folder: Path, seed: int, rounds: Rounds) -> Tally:
    """Damage everything in turn and print a line for each part; return the tally.

    Args:
        folder: folder of all copies, which is made anew.
        seed: decides which files are damaged, and where.
        rounds: how often each part is damaged.
    """
    shutil.rmtree(folder, ignore_errors=True)
    os.environ["TQDM_DISABLE"] = "1"
    project = write_project(folder / "project")
    config = load_config(project, [*SETTINGS, f"store={folder / 'whole'}"])
    damages, tally, begun = Damages(seed), Tally(), time.monotonic()
    run(config, Store(config.store))
    print(f"left alone: {time.monotonic() - begun:.0f} s", flush=True)
    for part in (damage_builds, damage_checkpoints, damage_artifacts):
        part(config, folder, damages, tally, rounds)
        print(f"{tally.total} damages after {time.monotonic() - begun:.0f} s", flush=True)
        for line in (*tally.unnoticed, *tally.changed):
            print(line, flush=True)
    return tally


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "damage-points")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few rounds of each part")
    args = parser.parse_args()
    found = main(args.folder.resolve(), args.seed, Rounds(1, 3, 3, 2) if args.quick else Rounds())
    print(found.table())
    sys.exit(bool(found.unnoticed or found.changed))
