"""Choices scored together equal choices scored apart; the command answers with several systems or refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest

from jora_core.architecture.model_config import ModelConfig
from jora_core.base.errors import InputError
from jora_core.commands.predict import make_questions, predict
from jora_core.data.prompts.prompt_template import load_template
from jora_core.data.tokenizer import end_tokens, load_tokenizer
from jora_core.generation.choice_scores import score_choices
from jora_core.generation.choice_trees import Question, group_choices, plan_choices
from jora_core.model.decoder import forward, unembed
from jora_core.parameters.trees import Adapter
from jora_core.specs.answers import PredictSpec
from jora_core.specs.lora import LoraSpec
from jora_core.specs.prompts.settings import PromptSpec
from jora_core.weights.adapter_folder import save_adapter
from jora_core.weights.load_params import load_params
from tests.jora_core.trees import chains


@pytest.fixture(scope="module")
def records(
    alpaca_rows: Callable[..., list[dict[str, Any]]],
    write_rows: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    rows = alpaca_rows(contexts=4, questions=2, lines=4)
    for i, row in enumerate(rows):
        row |= {
            "split": "test",
            "choices": ["line 1", "line 12 and more", "x"][: 1 + i % 3],
            "gold": ["line 1"],
        }
    rows.append({**rows[0], "id": "open", "task": "qa", "choices": []})
    rows.append({**rows[0], "id": "other split", "split": "train"})
    return write_rows(tmp_path_factory.mktemp("records") / "records.parquet", rows)


@pytest.fixture(scope="module")
def adapter(
    tiny_weights: Path, random_adapter: Callable[..., Adapter], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Adapter, Path]:
    spec = LoraSpec.model_validate({"r": 4})
    made = random_adapter(ModelConfig.from_hf(tiny_weights), spec)
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(made, folder, spec, "base")
    return made, folder


@pytest.fixture()
def order(tiny_weights: Path, records: Path, adapter: tuple[Adapter, Path], tmp_path: Path) -> dict[str, Any]:
    return {
        "model": str(tiny_weights),
        "systems": {"base": None, "tuned": str(adapter[1])},
        "records": str(records),
        "max_seq_len": 192,
        "tokens_per_batch": 512,
        "max_new_tokens": 4,
        "output_dir": str(tmp_path / "out"),
    }


def apart(model: Path, questions: list[Question], adapter: Adapter) -> list[list[float]]:
    """Log-likelihood of each choice by one plain row [prompt, choice, EOS] each."""
    config = ModelConfig.from_hf(model)
    params = load_params(model, config)
    rows = [np.concatenate([q.prompt, tokens]) for q in questions for tokens in q.choice_tokens]
    width = max(map(len, rows))
    tokens = np.asarray([np.pad(row, (0, width - len(row))) for row in rows])
    until = jnp.asarray([[len(row)] * len(row) + [0] * (width - len(row)) for row in rows], jnp.int32)
    positions = np.broadcast_to(np.arange(width, dtype=np.int32), tokens.shape)

    @jax.jit
    def logprobs(tokens: jax.Array) -> jax.Array:
        hidden = forward(params, config, tokens, jnp.asarray(positions), until, adapter=adapter)
        values = jax.nn.log_softmax(unembed(params, config, hidden))[:, :-1]
        return jnp.take_along_axis(values, tokens[:, 1:, None], axis=-1)[..., 0]

    values = iter(np.asarray(logprobs(tokens), np.float64))
    return [
        [float(next(values)[len(q.prompt) - 1 :][: len(tokens)].sum()) for tokens in q.choice_tokens]
        for q in questions
    ]


def test_choices_together_equal_choices_apart(
    order: dict[str, Any], tiny_weights: Path, records: Path, adapter: tuple[Adapter, Path]
) -> None:
    spec = PredictSpec.model_validate(order)
    rows = [row for row in pq.read_table(records).to_pylist() if row["split"] == "test"]
    tokenizer = load_tokenizer(tiny_weights)
    questions, shortened = make_questions(rows, spec, tokenizer, load_template(spec.prompt, tokenizer))
    assert shortened == 0
    expected = apart(tiny_weights, questions, adapter[0])
    config = ModelConfig.from_hf(tiny_weights)
    params = load_params(tiny_weights, config)
    # The second budget cuts a question's choices into several groups.
    for budget, share in ((512, True), (512, False), (max(len(q.prompt) for q in questions) + 8, True)):
        plan = plan_choices(questions, budget, share=share)
        assert plan is not None
        scores = score_choices(params, config, plan, adapter=adapter[0])
        assert [len(s) for s in scores] == [len(row["choices"]) for row in rows]
        for got, want in zip(scores, expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_questions_of_one_context_share_it() -> None:
    """A context is computed once for its questions, and each question once for its choices."""
    rng = np.random.default_rng(0)
    contexts = [rng.integers(3, 99, 200, dtype=np.int32) for _ in range(2)]
    choices = tuple(np.asarray([n, 2], np.int32) for n in (5, 6, 7))
    names = ("a", "b", "c")
    owns = (9, 150, 8, 160, 7, 170)
    prompts = [
        np.concatenate([contexts[number % 2], rng.integers(3, 99, own, dtype=np.int32)])
        for number, own in enumerate(owns)
    ]
    questions = [Question(str(n), prompt, names, choices, str(n % 2)) for n, prompt in enumerate(prompts)]
    owners, groups = group_choices(questions, 1024, True)
    assert owners == [(q, c) for q in range(6) for c in range(3)]
    assert sorted(int(id) for group in groups for id in group.ids) == list(range(18)) and len(groups) == 2
    for group in groups:
        for id, chain in zip(group.ids, chains(group), strict=True):
            question, choice = owners[int(id)]
            whole = np.concatenate([questions[question].prompt, choices[choice]])
            np.testing.assert_array_equal(chain.tokens, whole)
    # One slot of each choice: its end is only predicted.
    assert sum(group.slots for group in groups) == 2 * 200 + sum(owns) + 6 * 3
    apart = group_choices(questions, 1024, False)[1]
    assert sum(group.slots for group in apart) == sum(len(q.prompt) + 3 for q in questions)


def test_two_systems_and_both_modes(order: dict[str, Any], tmp_path: Path) -> None:
    result = predict(PredictSpec.model_validate(order | {"mode": "both"}))
    rows = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    assert list(rows[0]) == ["id", "system", "choice", "choice_logprob", "choice_logprobs", "text"]
    assert [row["system"] for row in rows] == ["base"] * 9 + ["tuned"] * 9
    assert len({row["id"] for row in rows}) == 9
    assert "other split" not in {row["id"] for row in rows}
    by_id = {(row["system"], row["id"]): row for row in rows}
    assert by_id["base", "open"]["choice"] == "" and by_id["base", "open"]["choice_logprob"] is None
    assert by_id["base", "c0-q0"]["choice"] == "line 1"
    assert by_id["base", "c0-q0"]["choice_logprob"] != by_id["tuned", "c0-q0"]["choice_logprob"]
    assert all(row["choice_logprob"] < 0 for row in rows if row["choice"])
    assert all(row["choice_logprob"] == max(row["choice_logprobs"]) for row in rows if row["choice"])
    assert by_id["base", "open"]["choice_logprobs"] == []
    assert result == json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["records"] == 9 and result["peak_memory_bytes"] > 0


def test_channel_records_are_scored_by_one_text_after_each_choice(
    order: dict[str, Any], records: Path, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    row = next(row for row in pq.read_table(records).to_pylist() if len(row["choices"]) == 3)
    text, inputs = "line 12 and more", [row["input"], "another\n\nquestion", "line 1\n\nquestion"]
    channel = row | {"id": "channel", "output": text, "choice_inputs": inputs, "choices": ["a", "b", "c"]}
    plain = [
        row | {"id": f"part {n}", "input": given, "choices": [text], "choice_inputs": []}
        for n, given in enumerate(inputs)
    ]
    path = write_rows(tmp_path / "records.parquet", [plain[0], channel, *plain[1:]])
    result = predict(PredictSpec.model_validate(order | {"records": str(path), "mode": "choice"}))
    assert result["records"] == 4
    found = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    assert [one["id"] for one in found[:4]] == ["part 0", "channel", "part 1", "part 2"]
    tokens = len(load_tokenizer(Path(order["model"])).encode(text)) + 1  # with the end token
    for system in ("base", "tuned"):
        rows = {one["id"]: one for one in found if one["system"] == system}
        apart = [rows[f"part {n}"]["choice_logprob"] / tokens for n in range(3)]
        assert rows["channel"]["choice_logprobs"] == pytest.approx(apart, abs=1e-5)
        best = int(np.argmax(rows["channel"]["choice_logprobs"]))
        assert rows["channel"]["choice"] == "abc"[best] and rows["channel"]["text"] == ""
        assert rows["channel"]["choice_logprob"] == rows["channel"]["choice_logprobs"][best]
    with pytest.raises(InputError, match="channel records are scored and not answered in words"):
        predict(PredictSpec.model_validate(order | {"records": str(path), "mode": "both"}))


def test_drawn_texts_follow_from_the_record(order: dict[str, Any], tmp_path: Path) -> None:
    def texts(**changes: Any) -> dict[tuple[str, str], str]:
        predict(PredictSpec.model_validate(order | {"mode": "generate", "max_new_tokens": 10} | changes))
        rows = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
        return {(row["system"], row["id"]): row["text"] for row in rows}

    drawn = {"sampling": {"temperature": 1.2, "top_p": 0.95, "seed": 1}}
    all_nine = texts(**drawn)
    # Fewer records, in other batches.
    few = texts(**drawn, max_records=3, tokens_per_batch=192)
    assert len(few) == 6 and few == {key: all_nine[key] for key in few}
    key = next(key for key, text in all_nine.items() if len(text) > 5 and "\ufffd" not in text[2:4])
    stop = all_nine[key][2:4]
    cut = texts(**drawn, stop=[stop])
    assert cut[key] == all_nine[key].partition(stop)[0].strip()
    assert all(all_nine[other].startswith(text) and stop not in text for other, text in cut.items())


def test_long_prompts_lose_context_not_the_question(
    order: dict[str, Any], records: Path, tiny_weights: Path
) -> None:
    tokenizer = load_tokenizer(tiny_weights)
    template = load_template(PromptSpec(), tokenizer)
    rows = pq.read_table(records).to_pylist()[:3]
    full, _ = make_questions(rows, PredictSpec.model_validate(order), tokenizer, template)
    limit = min(len(q.prompt) for q in full) - 4
    spec = PredictSpec.model_validate(order | {"max_seq_len": limit})
    cut, shortened = make_questions(rows, spec, tokenizer, template)
    assert shortened == 3
    for question, row in zip(cut, rows, strict=True):
        assert len(question.prompt) + max(map(len, question.choice_tokens)) <= limit
        assert row["input"].rpartition("\n\n")[2] in tokenizer.decode(question.prompt.tolist())
    with pytest.raises(InputError, match="leaves no room"):
        make_questions(
            rows, PredictSpec.model_validate(order | {"max_seq_len": 8, "mode": "both"}), tokenizer, template
        )


def test_end_tokens_come_from_all_three_places(tiny_model: Path, tmp_path: Path) -> None:
    config = ModelConfig.from_hf(tiny_model)
    tokenizer = load_tokenizer(tiny_model)
    assert end_tokens(tmp_path, config, tokenizer) == (tokenizer.eos_id,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    assert end_tokens(tmp_path, config, tokenizer) == tuple(sorted({tokenizer.eos_id, 7, 9}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"records": "nowhere.parquet"}, "records file nowhere.parquet does not exist"),
        ({"task": "tables"}, "no records with split='test' and task='tables'"),
        ({"task": "qa"}, "no record has choices"),
        ({"mesh": {"tensor": 64}}, "needs 64 devices"),
        ({"systems": {"tuned": "nowhere"}}, "adapter folder nowhere does not exist"),
        ({"model": "nowhere"}, "model folder nowhere does not exist"),
        ({"prompt_template": "{question}"}, "prompt.template: bad field {question}"),
    ],
)
def test_refused_orders(order: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        predict(PredictSpec.model_validate(order | changes))
    assert said in str(caught.value)


def test_records_without_a_column(
    order: dict[str, Any], records: Path, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    rows = [{k: v for k, v in row.items() if k != "choices"} for row in pq.read_table(records).to_pylist()]
    path = write_rows(tmp_path / "records.parquet", rows)
    with pytest.raises(InputError, match="column 'choices' is missing"):
        predict(PredictSpec.model_validate(order | {"records": str(path)}))
    path.write_text("no parquet")
    with pytest.raises(InputError, match="is not a readable Parquet file"):
        predict(PredictSpec.model_validate(order | {"records": str(path)}))


def test_command_line(order: dict[str, Any], tmp_path: Path) -> None:
    def run(changes: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        (tmp_path / "spec.json").write_text(json.dumps(order | changes))
        command = [sys.executable, "-m", "jora_core.commands.predict", "--spec", str(tmp_path / "spec.json")]
        return subprocess.run(command, capture_output=True, text=True, timeout=280)

    bad = run({"max_record": 3})
    assert bad.returncode == 2
    assert (
        bad.stderr
        == f"error: spec {tmp_path}/spec.json: max_record: unknown key; did you mean max_records?\n"
    )
    streamed = run({"mode": "generate", "stream": True, "systems": {"base": None}})
    assert streamed.returncode == 0, streamed.stderr
    lines = [json.loads(line) for line in streamed.stdout.splitlines()]
    table = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    assert {line["id"]: line["text"] for line in lines} == {row["id"]: row["text"] for row in table}
    assert len(lines) == 9 and all(line["prompt_tokens"] > line["answer_tokens"] > 0 for line in lines)
    assert "generate, base" not in streamed.stderr
    good = run({"max_records": 2, "compilation_cache_dir": str(tmp_path / "cache")})
    assert good.returncode == 0, good.stderr
    assert "choose, tuned: " in good.stderr
    assert any((tmp_path / "cache").iterdir())
    assert pq.read_table(tmp_path / "out" / "predictions.parquet").num_rows == 4
