"""The Modelfile of Ollama beside a GGUF file: prompt template and stop words.

Ollama's templates are of Go, and a chat template is Jinja. Those of widespread formats have their Go form
here. For another one a note asks the user to write it.
Format: https://github.com/ollama/ollama/blob/main/docs/modelfile.md
"""

from __future__ import annotations

from pathlib import Path

from jora_core.base.atomic_files import write_bytes
from jora_core.base.notices import notice
from jora_core.weights.gguf.write_tokenizer import chat_templates

_CHATML = """{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
_LLAMA3 = """{{- range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>

{{ .Content }}<|eot_id|>{{ end }}<|start_header_id|>assistant<|end_header_id|>

"""
_GEMMA = """{{- range .Messages }}<start_of_turn>{{ if eq .Role "assistant" }}model{{ else }}user{{ end }}
{{ .Content }}<end_of_turn>
{{ end }}<start_of_turn>model
"""
# Text that a chat template has only in this format: its Go form and stop words.
_FORMATS = (
    ("<|start_header_id|>", _LLAMA3, ("<|eot_id|>",)),
    ("<start_of_turn>", _GEMMA, ("<end_of_turn>",)),
    ("<|im_start|>", _CHATML, ("<|im_end|>",)),
)
_ALPACA = """### Instruction:
{{ if .System }}{{ .System }}

### Input:
{{ end }}{{ .Prompt }}

### Response:
"""
_ALPACA_STOPS = ("### Instruction:",)


def write_modelfile(folder: Path, path: Path, gguf: str, end: str, context: int) -> None:
    """Write the Modelfile of a model.

    Args:
        folder: the model folder, for its chat template.
        path: file to write.
        gguf: name of the GGUF file beside it.
        end: text of the EOS token.
        context: tokens of a prompt and its answer.
    """
    template = chat_templates(folder).get("default")
    found = next((row for row in _FORMATS if template and row[0] in template), None)
    if found is not None:
        go, stops = found[1:]
    else:
        go, stops = _ALPACA, _ALPACA_STOPS
        if template and "### Response:" not in template:
            notice(f"{folder}: its chat template has no known form for Ollama; edit TEMPLATE in {path.name}")
            go, stops = "{{ .Prompt }}", ()
    lines = [f"FROM ./{gguf}", f'TEMPLATE """{go}"""', f"PARAMETER num_ctx {context}"]
    lines += [f'PARAMETER stop "{stop}"' for stop in dict.fromkeys([*stops, end])]
    write_bytes(path, ("\n".join(lines) + "\n").encode())
