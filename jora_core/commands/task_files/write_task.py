"""Write held-out records with choices as a task of EleutherAI's lm-eval.

``python -m jora_core.commands.task_files.write_task --spec FILE`` writes ``NAME.yaml``, ``NAME.jsonl`` and
``task_functions.py`` to the task's folder, and ``result.json``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jora_core.base.atomic_files import atomic_path, write_json
from jora_core.base.errors import InputError
from jora_core.base.json_fields import read_json_object
from jora_core.base.progress import progress
from jora_core.commands.predict import make_questions, read_rows
from jora_core.commands.run_command import run_command
from jora_core.commands.task_files import task_functions
from jora_core.commands.task_files.task_documents import TaskDocument, task_document
from jora_core.data.prompts.prompt_template import load_template, unmarked
from jora_core.data.tokenizer import load_tokenizer
from jora_core.specs.answers import TaskFilesSpec
from jora_core.weights.model_folder import read_model

# `custom_dataset` and not `dataset_path`, which is relative to the folder where lm-eval is started.
_YAML = """\
# A task of lm-eval (https://github.com/EleutherAI/lm-evaluation-harness), written by `jora evaluate`.
# The prompts are whole: no chat template, no examples and no delimiters may be added.
task: {name}
custom_dataset: !function task_functions.documents
dataset_kwargs:
  file: {name}.jsonl
test_split: test
output_type: multiple_choice
num_fewshot: 0
doc_to_text: context
doc_to_choice: continuations
doc_to_target: gold
target_delimiter: ""
process_results: !function task_functions.scores
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""


def write_task(spec: TaskFilesSpec) -> dict[str, Any]:
    """Write the files of a task and ``result.json``.

    Returns:
        The content of ``result.json``: `documents`; `shortened`, prompts that were too long for our
        evaluation; `differing`, documents of which lm-eval makes other tokens than ours; `adds_bos`, whether
        lm-eval must be told not to add a BOS token; `longer_than_model`, documents that it would cut.

    Raises:
        InputError: the model or the records cannot be used, or no record has a right choice.
    """
    found, shortened, adds_bos = _documents(spec)
    spec.folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(spec.folder / f"{spec.name}.jsonl") as temporary:
        lines = [json.dumps(document.row, ensure_ascii=False) + "\n" for document in found]
        temporary.write_text("".join(lines), encoding="utf-8")
    for name, text in (
        ("task_functions.py", Path(task_functions.__file__).read_text(encoding="utf-8")),
        # Last, because lm-eval looks for it.
        (f"{spec.name}.yaml", _YAML.format(name=spec.name)),
    ):
        with atomic_path(spec.folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    longest = _longest(read_json_object(spec.model / "config.json", f"model folder {spec.model}"))
    result = {
        "documents": len(found),
        "shortened": shortened,
        "differing": sum(not document.exact for document in found),
        "adds_bos": adds_bos,
        "longer_than_model": sum(document.tokens > longest for document in found) if longest else 0,
    }
    write_json(spec.output_dir / "result.json", result)
    return result


def _documents(spec: TaskFilesSpec) -> tuple[list[TaskDocument], int, bool]:
    """Return the documents, the number of shortened prompts, and whether lm-eval would add a BOS token."""
    # Not at import: it loads slowly, and the other functions of this module do without.
    from transformers import AutoTokenizer

    config = read_model(spec.model)
    tokenizer = load_tokenizer(spec.model, config.vocab_size)
    rows = [row for row in read_rows(spec) if row["id"] in spec.gold]
    if not rows:
        raise InputError(f"{spec.records}: no record has choices and is scored by them")
    template = load_template(spec.prompt, tokenizer)
    questions, shortened = make_questions(rows, spec, tokenizer, template)
    judge = AutoTokenizer.from_pretrained(str(spec.model), local_files_only=True)

    def encode(texts: list[str]) -> list[list[int]]:
        return judge(texts, add_special_tokens=False)["input_ids"]

    bos = "".join(judge.convert_ids_to_tokens(template.bos.tolist()))
    end = judge.convert_ids_to_tokens(template.end_id)
    # lm-eval lets the tokenizer add its special tokens, unless a text begins with this one.
    first = judge.bos_token_id if judge.bos_token_id is not None else judge.eos_token_id
    begin = judge.decode([first])
    found = []
    adds_bos = False
    with progress("write task", len(questions)) as bar:
        for row, question in zip(rows, questions, strict=True):
            text = bos + unmarked(template.prompt(row["instruction"], row["input"]), tokenizer)
            # A shortened prompt is known as tokens only.
            prompts = [text, judge.decode(question.prompt.tolist(), skip_special_tokens=False)]
            answers = [unmarked(template.answer(choice), tokenizer) + end for choice in question.choices]
            document = task_document(question, prompts, answers, spec.gold[question.id], encode)
            context = document.row["context"]
            adds_bos |= not context.startswith(begin) and judge.encode(context) != encode([context])[0]
            found.append(document)
            bar.advance()
    return found, shortened, adds_bos


def _longest(config: Mapping[str, Any]) -> int | None:
    """Return the longest text of a model in tokens, as lm-eval finds it; None if its files do not say."""
    found = config.get("max_position_embeddings")
    return found if isinstance(found, int) else None


def _main(spec: TaskFilesSpec) -> None:
    write_task(spec)


if __name__ == "__main__":
    run_command(TaskFilesSpec, _main)
