"""Write records as a task file for another evaluation program, token for token as they are asked here.

``python -m jora_core.commands.write_task --spec FILE`` writes ``docs.jsonl`` (id, prompt, choices, gold) and
``result.json``. Prompts have the texts of all control tokens in them, and choices the token that ends an
answer. A program that joins both and encodes them without adding tokens gets our tokens; for each choice this
is tried with the tokenizer of `transformers`, and the others are counted.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from jora_core.base.atomic_files import atomic_path, write_json
from jora_core.base.errors import InputError
from jora_core.commands.predict import make_questions, read_rows
from jora_core.commands.run_command import run_command
from jora_core.data.prompts.prompt_template import load_template
from jora_core.data.tokenizer import load_tokenizer
from jora_core.specs.answers import PredictSpec
from jora_core.weights.model_folder import read_model

DOCS = "docs.jsonl"


def write_task(spec: PredictSpec) -> dict[str, Any]:
    """Write the records of a spec whose answer is one of several choices.

    Args:
        spec: model, records and prompts, as for the answers to these records.

    Returns:
        The content of ``result.json``: number of records, of those whose tokens another program gets too, and
        of shortened ones.

    Raises:
        InputError: the model or the records cannot be used.
    """
    from transformers import AutoTokenizer

    tokenizer = load_tokenizer(spec.model, read_model(spec.model).vocab_size)
    template = load_template(spec.prompt, tokenizer)
    questions, shortened = make_questions(read_rows(spec), spec, tokenizer, template)
    other = AutoTokenizer.from_pretrained(spec.model)

    def text_of(tokens: np.ndarray) -> str:
        found = other.decode(tokens.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(found)

    same = 0
    with atomic_path(spec.output_dir / DOCS) as temporary, temporary.open("w", encoding="utf-8") as file:
        for question in questions:
            if not question.choices:
                raise InputError(f"{spec.records}, record {question.id}: it has no choices to write")
            prompt = text_of(question.prompt)
            whole = [np.concatenate([question.prompt, tokens]) for tokens in question.choice_tokens]
            texts = [text_of(tokens) for tokens in whole]
            same += all(
                text.startswith(prompt) and other.encode(text, add_special_tokens=False) == tokens.tolist()
                for text, tokens in zip(texts, whole, strict=True)
            )
            row = {
                "id": question.id,
                "prompt": prompt,
                "choices": [text.removeprefix(prompt) for text in texts],
                "labels": list(question.choices),
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    result = {"records": len(questions), "same_tokens": same, "shortened": shortened}
    write_json(spec.output_dir / "result.json", result)
    return result


def _main(spec: PredictSpec) -> None:
    write_task(spec)


if __name__ == "__main__":
    run_command(PredictSpec, _main)
