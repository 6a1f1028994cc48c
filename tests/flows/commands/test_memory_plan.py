"""`jora memory`: what becomes of its options, and one whole run on a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flows.commands.planning.memory_plan import memory_settings
from flows.configuration.load import load_config
from jora_core.base.errors import InputError

pytestmark = pytest.mark.usefixtures("real_compilation")

SHAPE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 320,
}


def test_a_configuration_gives_its_fullest_microbatch() -> None:
    config = load_config()
    settings = memory_settings(config, None, {"tensor": 2, "r": None})
    phase = max(config.phases, key=lambda phase: phase.tokens_per_batch)
    assert settings["model"] == config.model.path
    assert settings["mesh"] == {"data": config.mesh.data, "tensor": 2}
    assert settings["lora"]["r"] == phase.lora.r
    assert settings["seq_len"] % 64 == 0 and settings["seq_len"] >= phase.max_seq_len
    assert settings["rows"] == max(1, phase.tokens_per_batch // settings["seq_len"])
    # Shorter rows leave room for more of them, as in training.
    assert memory_settings(config, None, {"seq_len": 64})["rows"] == phase.tokens_per_batch // 64


def test_options_that_make_no_sense() -> None:
    model = Path("config.json")
    with pytest.raises(InputError, match="not both"):
        memory_settings(None, model, {"rows": 1, "tokens_per_batch": 4096})
    with pytest.raises(InputError, match=r"^jora memory: card: .*24, 40, 48, 80 or 141"):
        memory_settings(None, model, {"card": 30})


def test_the_command_prints_a_plan(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    words = ["--model", str(tmp_path / "config.json"), "--tensor", "2", "--seq-len", "64", "--target", "host"]
    command = [sys.executable, "-m", "flows.cli", "memory", *words]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    kinds = {kind: size for kind, size in plan["bytes_per_device"].items() if kind != "total"}
    assert sum(kinds.values()) == plan["bytes_per_device"]["total"]
    assert 64 <= plan["longest_row"] <= plan["most_positions"] == 2048 and plan["card"] == 24
    assert "compiled for rows of 64 tokens" in done.stderr
    both = subprocess.run([*command, str(tmp_path / "my.yaml")], capture_output=True, text=True)
    assert both.returncode == 2 and both.stderr.strip() == "error: give CONFIG or --model, not both"
