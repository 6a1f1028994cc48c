"""Run one real training step on this CPU and print how much the process grew: ``measure_peak.py SPEC.json``.

Apart from the step itself nothing here is shared with the prediction: what is read is the kernel's own
high-water mark of resident memory (VmHWM), reset after everything was compiled.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from jora_core.architecture.model_config import ModelConfig
from jora_core.parallel.mesh import make_mesh
from jora_core.parameters.initialize import init_adapter, init_params
from jora_core.specs.data import DataSpec
from jora_core.specs.lora import LoraSpec
from jora_core.specs.train import TrainSpec
from jora_core.training.train_step import build_step


def resident(name: str) -> int:
    """A field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"no {name} here")


def main(order: dict) -> None:
    config = ModelConfig.from_hf(order["model"])
    lora = LoraSpec.model_validate(order["lora"])
    spec = TrainSpec(
        model=order["model"],
        lora=lora,
        data=DataSpec(records="unused"),
        max_steps=1,
        remat=order["remat"],
        output_dir="unused",
        checkpoint_dir="unused",
    )
    rows, length = order["rows"], order["seq_len"]
    answers = rows * order["answer_tokens"]
    mesh = make_mesh()
    key = jax.random.key(0)
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(lambda: (init_params(config, key), init_adapter(config, lora, key)))

        def filled(value: float):
            # Constants: random weights would need room of their own while they are drawn.
            return jax.jit(lambda: jax.tree.map(lambda s: jnp.full(s.shape, value, s.dtype), shapes))

        step = build_step(config, spec, mesh, lambda _: jnp.float32(1e-4), shapes[1])
        grid = dict.fromkeys(("tokens", "positions", "until"), (rows, length))
        chosen = {"index": (1, answers), "targets": (1, answers), "weights": (1, answers)}
        batch = {name: jnp.ones(shape, jnp.int32) for name, shape in (grid | chosen).items()}
        batch |= {
            "weights": jnp.ones((1, answers), jnp.float32),
            "until": jnp.full((rows, length), length, jnp.int32),
            "positions": jnp.broadcast_to(jnp.arange(length), (rows, length)),
        }

        def run() -> float:
            params, adapter = filled(0.01)()
            state = step.start(adapter)
            sums = step.zero(state)
            sums = step.accumulate(sums, state, params, batch, 0)
            state, sums, metrics = step.update(state, sums)
            return float(metrics.loss)

        run()  # compiles; its memory is given back
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        loss = run()
        print(json.dumps({"grew": resident("VmHWM") - before, "loss": loss}))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
