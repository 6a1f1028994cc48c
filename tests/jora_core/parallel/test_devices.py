"""A platform that is not there, and an XLA flag that does not exist: one line that names the variable."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jora_core.base.errors import InputError
from jora_core.parallel.devices import refuse_unusable_platform
from jora_core.parallel.mesh import make_mesh

ROOT = Path(__file__).resolve().parents[3]
#: What JAX raises for platforms that are not there, by kind.
FAILURES = [
    ("cuda", AssertionError()),
    ("cuda", RuntimeError("Unable to initialize backend 'cuda': no supported devices found")),
    (
        "tpu",
        RuntimeError("Unable to initialize backend 'tpu':\n  UNAVAILABLE: No TPU\n  platform available."),
    ),
    ("rocm,cpu", RuntimeError("Unknown backend rocm")),
    ("gpu", KeyError("gpu")),
    ("", RuntimeError("jaxlib is broken\nand says so over\nmany lines " + "x" * 5000)),
]


@pytest.mark.parametrize(("platform", "failure"), FAILURES)
def test_a_platform_that_is_not_there_is_one_line(
    platform: str, failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def devices() -> list[object]:
        raise failure

    monkeypatch.setenv("JAX_PLATFORMS", platform)
    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(InputError, match="JAX_PLATFORMS") as caught:
        refuse_unusable_platform()
    said = str(caught.value)
    assert platform in said and "\n" not in said and len(said) < 500
    if isinstance(failure, (RuntimeError, AssertionError)):
        with pytest.raises(InputError, match="JAX finds no device") as caught:
            make_mesh()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_platform_that_is_there_is_not_refused() -> None:
    refuse_unusable_platform()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("JAX_PLATFORMS", "nonsense", "JAX_PLATFORMS=nonsense"),
        ("XLA_FLAGS", "--xla_nonsense=1", "xla_nonsense"),
        ("XLA_FLAGS", "--xla_gpu_no_such_thing=true", "xla_gpu_no_such_thing"),
        ("XLA_FLAGS", "--xla_force_host_platform_device_count=2 --xla_not_a_flag", "xla_not_a_flag"),
    ],
)
def test_jax_itself_is_one_line(name: str, value: str, said: str) -> None:
    """`jora doctor` and the check of a mesh ask JAX in a process of its own."""
    code = (
        "from flows.children.devices import find_devices as f\n"
        "from jora_core.base.errors import InputError\n"
        "try: print(f())\nexcept InputError as error: print(error)"
    )
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""} | {name: value}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert len(done.stdout.splitlines()) == 1 and said in done.stdout
