"""Damage of the cache of compiled programs: one line, the same result, and a whole cache afterwards."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from jora_core.parallel.program_cache import sealed, unsealed

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import logging, sys
from pathlib import Path
logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
import jax, jax.numpy as jnp
from jora_core.parallel.program_cache import set_program_cache
set_program_cache(Path(sys.argv[1]))
step = jax.jit(lambda x: jax.lax.scan(lambda c, _: (jnp.sin(c) @ c.T, c.sum()), x, None, 4))
print([part.tobytes().hex() for part in jax.device_get(jax.tree.leaves(step(jnp.eye(8) * 0.3)))])
"""


def run(folder: Path) -> tuple[str, list[str]]:
    """The result of the program, as text, and its lines about the cache."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "compiled again" in line]


def entries(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.endswith("-cache")}


def damaged(data: bytes, how: str, draw: random.Random) -> bytes:
    if how == "cut":
        return data[: draw.randrange(len(data))]
    changed = bytearray(data)
    changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def test_damage_is_compiled_away_once(tmp_path: Path) -> None:
    expected, said = run(tmp_path)
    good = entries(tmp_path)
    assert good and not said and all(unsealed(data) is not None for data in good.values())
    draw = random.Random(1)
    for number, (name, data) in enumerate(sorted(good.items())):
        (tmp_path / name).write_bytes(damaged(data, "cut" if number % 2 else "flip", draw))
    result, said = run(tmp_path)
    assert result == expected and len(said) == 1, "all entries were damaged, and one line says so"
    # Each is written anew, and read without a word.
    assert entries(tmp_path).keys() == good.keys()
    assert all(unsealed(data) is not None for data in entries(tmp_path).values())
    assert run(tmp_path) == (expected, [])


@pytest.mark.parametrize("how", ["cut", "flip"])
def test_every_damage_of_an_entry_is_found(how: str) -> None:
    draw = random.Random(2)
    data = sealed(draw.randbytes(200))
    assert unsealed(data) is not None
    assert all(unsealed(damaged(data, how, draw)) is None for _ in range(500))
    assert unsealed(b"") is None
