"""Reading and writing of ``peft``'s ``adapter_config.json`` as a `LoraSpec`.

A field that would need another computation than this core's is refused by name. This includes fields of later
releases of ``peft``: an unknown field is accepted only with a value that turns the field off.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jora_core.architecture.model_config import ModelConfig
from jora_core.base.error_messages import describe_validation_error
from jora_core.base.errors import InputError
from jora_core.base.json_fields import read_json_object
from jora_core.base.secrets import references
from jora_core.specs.adapter_targets import lora_targets, resolve_targets
from jora_core.specs.lora import LoraSpec

CONFIG_FILE = "adapter_config.json"

# Fields that do not change the computation of a finished adapter: its origin, how its weights were drawn
# (where that does not change the base), settings of a feature that another field turns on.
_SILENT = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "eva_config",
        "inference_mode",
        "loftq_config",
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
    }
)
_READ = frozenset(
    {
        "peft_type",
        "task_type",
        "r",
        "lora_alpha",
        "lora_dropout",
        "target_modules",
        "exclude_modules",
        "use_rslora",
        "use_dora",
        "init_lora_weights",
        "rank_pattern",
        "alpha_pattern",
        "layers_to_transform",
    }
)
# Values that turn a field off.
_OFF: tuple[Any, ...] = (None, False, "", "none", [], {})
# Initializations of A and B that keep the base weights. The others (PiSSA, OLoRA, LoftQ, ...) subtract the
# first adapter from the base, so their adapters are right over that changed base alone.
_INITS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")


def read_peft_config(folder: Path, config: ModelConfig) -> LoraSpec:
    """Read the LoRA settings of a PEFT folder, with the targets as names of projections.

    Args:
        folder: PEFT folder with ``adapter_config.json``.
        config: the base model's, for the modules that the targets match.

    Raises:
        InputError: file missing or broken, another PEFT method, a missing or wrong field, or a field that
            this core would compute differently.
    """
    path = folder / CONFIG_FILE
    data = read_json_object(path, f"adapter folder {folder}")
    if data.get("peft_type") != "LORA":
        raise InputError(f"{path}: peft_type {data.get('peft_type')} is not supported; expected LORA")
    if data.get("task_type") not in (None, "CAUSAL_LM"):
        raise InputError(f"{path}: task_type {data['task_type']} is not supported; expected CAUSAL_LM")
    if data.get("init_lora_weights") not in _INITS:
        raise InputError(
            f"{path}: init_lora_weights={json.dumps(data['init_lora_weights'])} changes the base weights; "
            "save the adapter with peft's path_initial_model_for_weight_conversion first"
        )
    # Sorted: with several unsupported fields the message names the same one each time.
    for name in sorted(data.keys() - _READ - _SILENT):
        if data[name] not in _OFF:
            raise InputError(
                f"{path}: {name}={json.dumps(data[name])} is not supported; expected it to be off. "
                "Merge the adapter with peft's merge_and_unload, and use the result as the base model"
            )
    for name in ("r", "lora_alpha", "target_modules"):
        if data.get(name) is None:
            raise InputError(f"{path}: {name} is missing; write the value that the adapter was trained with")
    return _spec(path, data, config)


def write_peft_config(spec: LoraSpec, targets: Sequence[str], base_name: str) -> dict[str, Any]:
    """Return the fields of an ``adapter_config.json``.

    Args:
        spec: the adapter's settings.
        targets: the projections that have an adapter.
        base_name: name or path of the base model.
    """
    layers, alphas = spec.layers_to_transform, spec.alpha_pattern
    # Only where they are given: other adapters keep the bytes that they had.
    given: dict[str, Any] = {} if layers is None else {"layers_to_transform": layers}
    given |= {"rank_pattern": dict(spec.rank_pattern)} if spec.rank_pattern else {}
    given |= {"alpha_pattern": {name: _alpha(alpha) for name, alpha in alphas.items()}} if alphas else {}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        # With `${NAME}` in place of a value from the environment, since adapters are given to others.
        "base_model_name_or_path": references(base_name),
        "r": spec.r,
        "lora_alpha": _alpha(spec.lora_alpha),
        "lora_dropout": spec.lora_dropout,
        # peft keeps a set, whose sequence differs from run to run; sorted, equal adapters give equal files.
        "target_modules": sorted(targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True if spec.init_lora_weights == "default" else spec.init_lora_weights,
        # True as in peft's own files: to continue training, peft is called with is_trainable.
        "inference_mode": True,
        "use_rslora": spec.use_rslora,
        "use_dora": spec.use_dora,
        "modules_to_save": None,
        **given,
    }


def _alpha(value: float) -> float:
    """Return a number as peft declares alpha, an integer, where it is one."""
    return int(value) if float(value).is_integer() else value


def _spec(path: Path, data: dict[str, Any], config: ModelConfig) -> LoraSpec:
    targets, exclude = data["target_modules"], data.get("exclude_modules")
    for name, value in (("target_modules", targets), ("exclude_modules", exclude)):
        listed = isinstance(value, list) and all(isinstance(item, str) for item in value)
        if not (listed or isinstance(value, str) or value is None):
            raise InputError(
                f"{path}: {name} must be a list of names or a pattern, found {json.dumps(value)}"
            )
    layers = data.get("layers_to_transform")
    try:
        fields = {
            "r": data["r"],
            "lora_alpha": data["lora_alpha"],
            # null counts as missing, in all optional fields.
            "lora_dropout": data.get("lora_dropout") or 0.0,
            # peft ignores names that the family does not have, so published adapters may list such names.
            "target_modules": list(resolve_targets(targets, config, exclude, absent_ok=True)),
            "use_rslora": data.get("use_rslora") or False,
            "use_dora": data.get("use_dora") or False,
            # peft takes an empty list for all layers.
            "layers_to_transform": None if layers == [] else layers,
            "rank_pattern": data.get("rank_pattern"),
            "alpha_pattern": data.get("alpha_pattern"),
        }
        # Strict: Pydantic would else make a rank of "16" or of true.
        spec = LoraSpec.model_validate(fields, strict=True)
        lora_targets(spec, config)  # its layers are those of the model
        return spec
    except ValidationError as err:
        raise InputError(f"{path}: {describe_validation_error(err, LoraSpec)}") from None
    except InputError as err:
        raise InputError(f"{path}: {err}") from None
