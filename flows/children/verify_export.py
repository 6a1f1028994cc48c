"""Compare an export with other libraries: ``python -m flows.children.verify_export --spec SPEC.json``.

The stage `export` starts this module as a child process. The merged model is loaded with `transformers`, and
the base model with the adapter with `peft`, both in float32. Their logits are compared with those of the
training core. The two libraries import torch, so this module does not import it itself. The exit status is
that of the commands of the training core.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from jora_core.base.spec_command import run_spec_command
from jora_core.specs.read_spec import read_spec

# Allowed difference of a logit in float32. Two implementations add in different order. A wrong weight changes
# a logit far more.
TOLERANCE = 1e-3
# A prompt with letters beyond ASCII, digits and a long dash, which tokenizers treat differently.
SAMPLE_TEXT = "### Instruction:\nSay which post it is.\n\n### Input:\n#1 Zoë: 42 – really?\n\n### Response:\n"


class VerifySpec(BaseModel):
    """The models to compare, the reference logits, and the folder of the result."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    base: Path = Field(title="Base model", description="Model folder that the adapter belongs to")
    model: Path = Field(title="Merged model", description="Folder of the export")
    adapter: Path = Field(title="Adapter", description="PEFT folder of the export")
    reference: Path = Field(title="Reference", description="safetensors: tokens [B, T], logits [B, T, V]")
    judge_adapter: bool = Field(
        title="Judge the adapter",
        description="Off where the merged weights are rounded to a narrow type: then the two differ rightly",
    )
    output_dir: Path = Field(title="Output folder", description="result.json")


def main(spec: VerifySpec) -> int:
    """Verify the export of the spec, write `result.json`, and return the exit status."""
    result = verify(spec)
    (spec.output_dir / "result.json").write_text(json.dumps(result), encoding="utf-8")
    judged = {"transformers": result["transformers_largest_difference"]}
    if spec.judge_adapter:
        judged["peft"] = result["peft_largest_difference"]
    for library, difference in judged.items():
        # A NaN is not less than anything: `difference > TOLERANCE` would let it pass.
        if not difference <= TOLERANCE:
            print(
                f"the export loaded with {library} gives logits that differ by {difference:.2e} from the "
                f"training core's; at most {TOLERANCE} is allowed",
                file=sys.stderr,
            )
            return 1
    return 0


def verify(spec: VerifySpec) -> dict[str, Any]:
    """Return the largest difference of a logit from the reference, for each library.

    Raises:
        RuntimeError: the exported tokenizer splits text differently from the base model's tokenizer.
    """
    import warnings

    import numpy as np

    # The libraries announce coming changes to developers, which a user who exports a model does not need.
    warnings.simplefilter("ignore", FutureWarning)
    from peft import PeftModel
    from safetensors.numpy import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, BatchEncoding
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    reference = load_file(spec.reference)
    # Makes a torch tensor without an import of torch here.
    tokens = BatchEncoding({"input_ids": reference["tokens"].astype(np.int64)}, tensor_type="pt")["input_ids"]

    def difference(model: Any) -> float:
        logits = model.eval()(input_ids=tokens).logits.detach().float().numpy()
        return float(np.abs(logits - reference["logits"]).max())

    def load(folder: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype="float32", local_files_only=True)

    # One after the other, because each loaded model is a copy of all weights in float32.
    found = {"transformers_largest_difference": difference(load(spec.model))}
    adapted = PeftModel.from_pretrained(load(spec.base), str(spec.adapter))
    found["peft_largest_difference"] = difference(adapted)
    # Equal logits prove the weights only. A tokenizer with other settings would give the model other ids.
    ids = [
        AutoTokenizer.from_pretrained(folder, local_files_only=True)(SAMPLE_TEXT)["input_ids"]
        for folder in (spec.base, spec.model)
    ]
    if ids[0] != ids[1]:
        raise RuntimeError(
            f"the exported tokenizer splits text otherwise than the base's: {ids[1]}, not {ids[0]}"
        )
    return found


if __name__ == "__main__":
    run_spec_command(
        lambda path: read_spec(path, VerifySpec), main, description="Compare an export's logits."
    )
