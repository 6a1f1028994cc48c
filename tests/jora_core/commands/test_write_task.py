"""Records with choices as a task of lm-eval: what the files say, and that lm-eval gives the same scores."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from jora_core.base.errors import InputError
from jora_core.commands.predict import make_questions, predict, read_rows
from jora_core.commands.task_files import task_functions
from jora_core.commands.task_files.write_task import write_task
from jora_core.data.prompts.prompt_template import load_template
from jora_core.data.tokenizer import load_tokenizer
from jora_core.specs.answers import PredictSpec, TaskFilesSpec

# Choices that begin others, with blanks at their beginning, in other scripts, of very different lengths, with
# line breaks and with the text of a control token.
CHOICES = (
    ["1", "12", "123"],
    [" lamp", "lamp", "  lamp"],
    ["#1 Zoë", "#2 李雷", "#3 Σωκράτης und noch viel mehr", "#4 🐎"],
    ["x", "a very long answer about copper, silver and bread"],
    ["one\ntwo", "one", "two\u2028three"],
    ["yes", "yes, but"],
)
GOLD = ([1], [1], [0, 2], [], [2], [0])


@pytest.fixture()
def rows(alpaca_rows: Callable[..., list[dict[str, Any]]]) -> list[dict[str, Any]]:
    made = alpaca_rows(contexts=3, questions=2, lines=4)
    for row, choices in zip(made, CHOICES, strict=True):
        row |= {"split": "test", "choices": list(choices)}
    # An open question, and a comment that the scores leave out.
    made.append({**made[0], "id": "open", "choices": []})
    made.append({**made[1], "id": "left out"})
    return made


@pytest.fixture()
def order(
    tiny_weights: Path,
    rows: list[dict[str, Any]],
    write_rows: Callable[[Path, list[dict[str, Any]]], Path],
    tmp_path: Path,
) -> dict[str, Any]:
    (tmp_path / "work").mkdir()
    return {
        "model": str(tiny_weights),
        "records": str(write_rows(tmp_path / "records.parquet", rows)),
        "max_seq_len": 256,
        "tokens_per_batch": 1024,
        "mode": "choice",
        "output_dir": str(tmp_path / "work"),
    }


def task_order(order: dict[str, Any], rows: list[dict[str, Any]], folder: Path) -> TaskFilesSpec:
    gold = {row["id"]: gold for row, gold in zip(rows, GOLD, strict=False)}
    more = {"name": "jora_threads", "gold": gold, "folder": str(folder)}
    return TaskFilesSpec.model_validate(order | more)


def documents(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "jora_threads.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def judged_tokens(model: Path, document: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
    """The tokens of context and continuation, as lm-eval's `_encode_pair` of causal models makes them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(model))
    context = document["context"]
    assert context == context.rstrip(), "lm-eval would move blanks to the continuation"
    begins_with_bos = tokenizer.bos_token is not None and context.startswith(tokenizer.bos_token)
    pairs = []
    for continuation in document["continuations"]:
        whole = tokenizer.encode(context + continuation, add_special_tokens=not begins_with_bos)
        alone = tokenizer.encode(context, add_special_tokens=not begins_with_bos)
        assert whole[: len(alone)] == alone
        pairs.append((alone, whole[len(alone) :]))
    return pairs


def test_the_documents_have_the_ids_of_our_evaluation(
    order: dict[str, Any], rows: list[dict[str, Any]], tiny_weights: Path, tmp_path: Path
) -> None:
    spec = task_order(order, rows, tmp_path / "task")
    result = write_task(spec)
    assert result == {
        "documents": 6,
        "shortened": 0,
        "differing": 0,
        "adds_bos": False,
        "longer_than_model": 0,
    }
    assert json.loads((tmp_path / "work" / "result.json").read_text()) == result
    found = documents(tmp_path / "task")
    assert [document["id"] for document in found] == [row["id"] for row in rows[:6]]
    assert [document["gold"] for document in found] == list(GOLD)
    assert [tuple(document["choices"]) for document in found] == [tuple(choices) for choices in CHOICES]
    tokenizer = load_tokenizer(tiny_weights)
    questions, _ = make_questions(
        [row for row in read_rows(spec) if row["id"] in spec.gold],
        spec,
        tokenizer,
        load_template(spec.prompt, tokenizer),
    )
    for document, question in zip(found, questions, strict=True):
        (alone, end), *pairs = judged_tokens(tiny_weights, document)
        assert alone + end == question.prompt.tolist()
        for (context, tokens), wanted in zip(pairs, question.choice_tokens, strict=True):
            assert context == alone and tokens == [*end, *wanted.tolist()]


def test_the_yaml_names_the_documents_and_functions(
    order: dict[str, Any], rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "task"
    write_task(task_order(order, rows, folder))
    assert sorted(path.name for path in folder.iterdir()) == [
        "jora_threads.jsonl",
        "jora_threads.yaml",
        "task_functions.py",
    ]

    class Loader(yaml.SafeLoader):
        """Reads `!function` as its text."""

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    task = yaml.load((folder / "jora_threads.yaml").read_text(), Loader)
    assert (task["task"], task["output_type"], task["target_delimiter"]) == (
        "jora_threads",
        "multiple_choice",
        "",
    )
    assert [metric["metric"] for metric in task["metric_list"]] == ["acc", "acc_norm"]
    module = importlib.util.spec_from_file_location("copied", folder / "task_functions.py")
    assert module is not None and module.loader is not None
    copied = importlib.util.module_from_spec(module)
    module.loader.exec_module(copied)
    for field in ("custom_dataset", "process_results"):
        assert callable(getattr(copied, task[field].removeprefix("task_functions.")))
    columns = documents(folder)[0]
    assert {task[name] for name in ("doc_to_text", "doc_to_choice", "doc_to_target")} <= columns.keys()
    assert (folder / task["dataset_kwargs"]["file"]).is_file()


def test_scores_subtract_the_end_of_the_prompt() -> None:
    def scores(gold: list[int], *found: float) -> tuple[float, float]:
        document = {"choices": ["ab", "abcd", ""], "gold": gold}
        made = task_functions.scores(document, [(value, False) for value in found])
        return made["acc"], made["acc_norm"]

    # Sums -4, -6, -9; for each character -2, -1.5, -9 (a choice without characters counts as one).
    assert scores([0], -5.0, -9.0, -11.0, -14.0) == (1.0, 0.0)
    assert scores([1], -5.0, -9.0, -11.0, -14.0) == (0.0, 1.0)
    # Without the subtraction, the second would be the best for each character: -4.5 and -3 against -2 and -3.
    assert scores([0], -5.0, -9.0, -17.0, -30.0) == (1.0, 1.0)
    assert scores([0, 2], -1.0, -3.0, -2.0, -1.5) == (1.0, 0.0)
    assert scores([], -1.0, -3.0, -2.0, -1.5) == (0.0, 0.0), "a right post that is not in the prompt"
    assert scores([0], -1.0, -2.0, -2.0, -2.0) == (1.0, 0.0), "the first of equal ones"


def merging_model(source: Path, folder: Path, corpus: str) -> Path:
    """A model folder whose tokenizer merges whatever is frequent, also over blanks and line breaks."""
    shutil.copytree(source, folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator([corpus] * 9, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_a_border_that_merges_is_moved_into_the_prompt(
    order: dict[str, Any], rows: list[dict[str, Any]], tiny_weights: Path, tmp_path: Path
) -> None:
    """Llama 3's tokenizer has a token of a colon and a line break, which no context of lm-eval ends with."""
    model = merging_model(tiny_weights, tmp_path / "model", ":\n" * 9)
    assert (
        load_tokenizer(model).encode("Response:\n").tolist()[-1:]
        == load_tokenizer(model).encode(":\n").tolist()
    )
    result = write_task(task_order(order | {"model": str(model)}, rows, tmp_path / "task"))
    assert result["differing"] == 0
    document = documents(tmp_path / "task")[0]
    assert document["context"].endswith("### Response") and document["continuations"][0].startswith(":\n")


def test_documents_with_other_tokens_are_counted(
    order: dict[str, Any], rows: list[dict[str, Any]], tiny_weights: Path, tmp_path: Path
) -> None:
    # The prompt's last line break and the first sign of a choice are one token, so no cut is exact.
    model = merging_model(tiny_weights, tmp_path / "model", "\n#" * 9)
    template = tmp_path / "template.txt"
    template.write_text("{instruction}\n{input}\n")
    changed = order | {"model": str(model), "prompt": {"template": str(template)}}
    assert write_task(task_order(changed, rows, tmp_path / "task"))["differing"] == 1
    # A control token that is text in a document becomes a token in lm-eval.
    rows[4]["input"] = "</s> " + rows[4]["input"]
    records = Path(order["records"])
    import pyarrow as pa

    pq.write_table(pa.Table.from_pylist(rows), records)
    assert write_task(task_order(order, rows, tmp_path / "other"))["differing"] == 1


def test_shortened_prompts_keep_their_ids(
    order: dict[str, Any], rows: list[dict[str, Any]], tiny_weights: Path, tmp_path: Path
) -> None:
    spec = task_order(order | {"max_seq_len": 120}, rows, tmp_path / "task")
    result = write_task(spec)
    assert result["shortened"] > 0 and result["differing"] == 0
    tokenizer = load_tokenizer(tiny_weights)
    questions, _ = make_questions(read_rows(spec), spec, tokenizer, load_template(spec.prompt, tokenizer))
    by_id = {question.id: question for question in questions}
    for document in documents(tmp_path / "task"):
        (alone, end), *_ = judged_tokens(tiny_weights, document)
        assert alone + end == by_id[document["id"]].prompt.tolist()


def test_a_task_without_a_document_is_refused(
    order: dict[str, Any], rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    spec = task_order(order, rows, tmp_path / "task").model_copy(update={"gold": {}})
    with pytest.raises(InputError, match="no record has choices"):
        write_task(spec)
    assert not (tmp_path / "task").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_lm_eval_gives_the_same_answers(
    order: dict[str, Any], rows: list[dict[str, Any]], tiny_weights: Path, tmp_path: Path
) -> None:
    """lm-eval itself, on the model folder: the same choice of every record, and the same two accuracies."""
    if importlib.util.find_spec("lm_eval") is None:
        pytest.skip("lm-eval is not installed (extra judge)")
    spec = task_order(order, rows, tmp_path / "task")
    write_task(spec)
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hf"),
    }
    command = [
        *(sys.executable, "-m", "lm_eval", "--model", "hf", "--device", "cpu", "--log_samples"),
        *("--model_args", f"pretrained={tiny_weights},dtype=float32", "--tasks", spec.name),
        *("--include_path", str(spec.folder), "--output_path", str(tmp_path / "out")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = (tmp_path / "out").rglob("results_*.json")
    theirs = json.loads(path.read_text())["results"][spec.name]
    (path,) = (tmp_path / "out").rglob("samples_*.jsonl")
    samples = {
        sample["doc"]["id"]: [float(one) for one, _ in sample["filtered_resps"]]
        for sample in map(json.loads, path.read_text().strip().split("\n"))
    }
    predict(PredictSpec.model_validate(order | {"systems": {"base": None}}))
    ours = pq.read_table(tmp_path / "work" / "predictions.parquet").to_pylist()
    sums, norms = [], []
    for row in ours:
        if row["id"] not in spec.gold:
            continue
        choices = rows[[each["id"] for each in rows].index(row["id"])]["choices"]
        end, *whole = samples[row["id"]]
        found = [value - end for value in whole]
        assert found == pytest.approx(row["choice_logprobs"], abs=1e-3)
        assert row["choice"] == choices[found.index(max(found))]
        each = [
            value / max(len(text), 1) for value, text in zip(row["choice_logprobs"], choices, strict=True)
        ]
        sums.append(float(choices.index(row["choice"]) in spec.gold[row["id"]]))
        norms.append(float(each.index(max(each)) in spec.gold[row["id"]]))
    assert len(sums) == 6 and sums != norms
    assert theirs["acc,none"] == pytest.approx(sum(sums) / 6)
    assert theirs["acc_norm,none"] == pytest.approx(sum(norms) / 6)
