"""The other side of a benchmark: `transformers` and `peft` with `torch.optim.AdamW`, as their guides say.

A worker of `harness`: settings come on stdin, then requests. Not run by hand.
"""

from __future__ import annotations

import re
import time
from typing import Any

import peft
import torch
from harness import HostMemory, cores, serve
from sides.workload import (
    ADAPTER_B_BOUND,
    TARGETS,
    WEIGHT_BOUND,
    first_supervised,
    layer_kinds,
    random_values,
    token_ids,
)
from transformers import AutoConfig, AutoModelForCausalLM

_FIELDS = {"embed_tokens": "embedding", "lm_head": "head"}


@torch.no_grad()
def fill(model: Any, kinds: int) -> None:
    """Give every parameter the values that it has on our side; norms are one."""
    repeated = kinds < model.config.num_hidden_layers
    known: dict[tuple, torch.Tensor] = {}
    for name, tensor in model.named_parameters():
        layer = int(found.group(1)) % kinds if (found := re.search(r"layers\.(\d+)\.", name)) else 0
        parts = [p for p in name.split(".") if p not in ("weight", "default", "base_layer")]
        if "norm" in parts[-1]:
            tensor.fill_(1)
            continue
        field, bound = _FIELDS.get(parts[-1], parts[-1]), WEIGHT_BOUND
        if parts[-1] in ("lora_A", "lora_B"):
            field = f"{parts[-2]}.{parts[-1][-1]}"
            bound = tensor.shape[1] ** -0.5 if parts[-1] == "lora_A" else ADAPTER_B_BOUND
        given = field, layer, tuple(tensor.shape), bound
        # Where layers repeat a few kinds, each is drawn once: a 7B model in seconds instead of minutes.
        values = known.get(given)
        if values is None:
            values = torch.from_numpy(random_values(*given))
            if repeated:
                known[given] = values
        tensor.copy_(values)


def make_model(settings: dict[str, Any], device: torch.device) -> Any:
    """The base model with an adapter on it, made on the device, ready to train."""
    config = AutoConfig.from_pretrained(settings["folder"])
    with device:
        base = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, settings["dtype"]), attn_implementation="sdpa"
        )
    base.config.use_cache = False
    if settings["checkpointing"]:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    lora = peft.LoraConfig(
        r=settings["rank"],
        lora_alpha=settings["alpha"],
        lora_dropout=0.0,
        target_modules=list(TARGETS),
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(base, lora)
    # peft makes the adapter in float32 over a bf16 base (autocast_adapter_dtype), as ours is.
    fill(model, layer_kinds(settings))
    return model.train()


def build(settings: dict[str, Any]) -> dict[str, Any]:
    """Make the model and its optimizer.

    With "probe" among the settings, only what device there is can be asked.
    """
    memory = HostMemory()

    def where() -> dict[str, Any]:
        found = torch.cuda.is_available()
        return {"platform": "gpu", "name": torch.cuda.get_device_name()} if found else {"platform": "cpu"}

    if settings.get("probe"):
        return {"device": where}
    torch.set_num_threads(cores())
    device = torch.device("cuda" if settings["device"] == "gpu" else "cpu")
    gpu = device.type == "cuda"
    model = make_model(settings, device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings["learning_rate"], weight_decay=0.0, fused=gpu)

    def step(step: int) -> dict[str, Any]:
        tokens = token_ids(settings, step)
        began = time.perf_counter()
        ids = torch.from_numpy(tokens).to(device, torch.long)
        labels = ids.clone()
        labels[:, : first_supervised(settings)] = -100
        with torch.autocast("cuda", torch.bfloat16, enabled=gpu):
            loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value = loss.item()
        if gpu:
            torch.cuda.synchronize()
        return {"loss": value, "seconds": time.perf_counter() - began}

    def report() -> dict[str, Any]:
        if not gpu:
            return memory.report()
        return memory.report() | {"device_peak_bytes": torch.cuda.max_memory_allocated()}

    def use(sequence: int) -> dict[str, Any]:
        """Go on with rows of another length."""
        settings["sequence"] = sequence
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        return {}

    return {"step": step, "warm": memory.warm, "memory": report, "use": use}


if __name__ == "__main__":
    serve(build)
