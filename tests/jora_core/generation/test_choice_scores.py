"""Constrained choice: never an invalid answer, and the log-likelihoods of transformers, shared or apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from jora_core.architecture.model_config import ModelConfig
from jora_core.commands.predict import predict
from jora_core.generation import choice_scores
from jora_core.generation.choice_scores import score_choices
from jora_core.generation.choice_trees import Question, plan_choices
from jora_core.parameters.trees import Params
from jora_core.specs.answers import PredictSpec
from jora_core.weights.load_params import load_params

QUESTIONS, CONTEXTS = 50, 5
END = 1


def questions(vocabulary: int, longest: int, seed: int = 0) -> list[Question]:
    """Questions whose contexts are shared by ten each; some choices begin others."""
    rng = np.random.default_rng(seed)

    def tokens(size: int) -> np.ndarray:
        return rng.integers(3, vocabulary, size, dtype=np.int32)

    contexts = [tokens(int(rng.integers(1, longest))) for _ in range(CONTEXTS)]
    found = []
    for number in range(QUESTIONS):
        prompt = np.concatenate([contexts[number % CONTEXTS], tokens(int(rng.integers(1, 12)))])
        choices = [tokens(int(rng.integers(1, 6))) for _ in range(int(rng.integers(1, 5)))]
        choices.append(np.append(choices[0], tokens(1)))  # as "12" begins with "1"
        ended = tuple(np.append(choice, np.int32(END)) for choice in choices)
        names = tuple(str(place) for place in range(len(choices)))
        found.append(Question(str(number), prompt, names, ended, str(number % CONTEXTS)))
    return found


def of_transformers(folder: Path, asked: list[Question]) -> list[list[float]]:
    """The summed log-likelihood of each choice, one plain row each, in float32."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    # Not `from_pretrained`: after other tests in the same process it has left rows of the tied output matrix
    # as memory was before.
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32).eval()
    held = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    held.setdefault("lm_head.weight", held["model.embed_tokens.weight"])
    model.load_state_dict({name: tensor.float() for name, tensor in held.items()})
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, held[name].float()), name
    scores = []
    for question in asked:
        mine = []
        for choice in question.choice_tokens:
            row = torch.from_numpy(np.concatenate([question.prompt, choice])).long()[None]
            with torch.no_grad():
                logprobs = torch.log_softmax(model(input_ids=row).logits[0, :-1].double(), dim=-1)
            of_choice = logprobs[-len(choice) :].gather(1, row[0, -len(choice) :, None])
            mine.append(float(of_choice.sum()))
        scores.append(mine)
    return scores


def scores_of(
    params: Params, config: ModelConfig, asked: list[Question], tokens_per_batch: int, share: bool = True
) -> list[np.ndarray]:
    plan = plan_choices(asked, tokens_per_batch, share=share)
    assert plan is not None
    return score_choices(params, config, plan)


def check(folder: Path, asked: list[Question]) -> None:
    config = ModelConfig.from_hf(folder)
    params = load_params(folder, config)
    shared, apart = (scores_of(params, config, asked, 1024, share=share) for share in (True, False))
    # And each question alone, without a neighbour in its batch.
    alone = [scores_of(params, config, [q], 1024)[0] for q in asked[:5]]
    expected = of_transformers(folder, asked)
    assert len(expected) == QUESTIONS
    for number, want in enumerate(expected):
        np.testing.assert_allclose(shared[number], want, rtol=0, atol=1e-4)
        np.testing.assert_allclose(apart[number], want, rtol=0, atol=1e-4)
        # A float32 of 100 is known to 1e-5 only: with a real model's log-likelihoods, a millionth of them.
        np.testing.assert_allclose(shared[number], apart[number], rtol=1e-6, atol=1e-5)
    for got, want in zip(alone, shared[:5], strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-5)


def test_log_likelihoods_are_those_of_transformers(tiny_weights: Path) -> None:
    pytest.importorskip("torch")
    check(tiny_weights, questions(ModelConfig.from_hf(tiny_weights).vocab_size, longest=60))


@pytest.mark.slow
@pytest.mark.corpus
@pytest.mark.timeout(1800)
def test_log_likelihoods_of_a_real_model_are_those_of_transformers() -> None:
    pytest.importorskip("torch")
    from flows.configuration.hub_models import fetched_folder

    folder = fetched_folder("smollm2-135m")
    if not (folder / "config.json").is_file():
        pytest.skip("smollm2-135m is not fetched: `jora fetch smollm2-135m`")
    check(folder, questions(ModelConfig.from_hf(folder).vocab_size, longest=60))


def test_a_question_without_choices_has_no_scores(tiny_weights: Path) -> None:
    config = ModelConfig.from_hf(tiny_weights)
    asked = questions(config.vocab_size, longest=20)[:3]
    asked[1] = replace(asked[1], choices=(), choice_tokens=())
    scores = scores_of(load_params(tiny_weights, config), config, asked, 256)
    assert [len(mine) for mine in scores] == [len(q.choices) for q in asked]
    assert not len(scores[1]) and all((mine < 0).all() for mine in scores)


def test_a_choice_is_never_invalid(
    tiny_weights: Path,
    alpaca_rows: Callable[..., list[dict[str, Any]]],
    write_rows: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """Whatever the choices look like, the answer is one of them, letter for letter, and the likeliest."""
    rows = alpaca_rows(contexts=6, questions=3, lines=3)
    kinds = (
        ["#1 Ann", "#12 Ann", "#1 Anna"],
        ["one alone"],
        ["twice", "twice", "once"],
        [" leading blank", "leading blank", "trailing blank "],
        ["北京", "né\u0301", "two\nlines", "</s>", "### Response:"],
        [str(n) for n in range(40)],
    )
    for number, row in enumerate(rows):
        row |= {"split": "test", "choices": kinds[number % len(kinds)], "gold": []}
    spec = {
        "model": str(tiny_weights),
        "systems": {"base": None},
        "records": str(write_rows(tmp_path / "records.parquet", rows)),
        "max_seq_len": 192,
        "tokens_per_batch": 512,
        "output_dir": str(tmp_path / "out"),
    }
    predict(PredictSpec.model_validate(spec))
    found = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    for row, answer in zip(rows, found, strict=True):
        assert answer["choice"] in row["choices"]
        scores = answer["choice_logprobs"]
        assert len(scores) == len(row["choices"]) and np.isfinite(scores).all()
        assert scores[row["choices"].index(answer["choice"])] == max(scores) == answer["choice_logprob"]
    by_choices = {tuple(row["choices"]): answer for row, answer in zip(rows, found, strict=True)}
    one, same, _ = by_choices["twice", "twice", "once"]["choice_logprobs"]
    assert one == pytest.approx(same, abs=1e-5)


def test_questions_of_one_row_do_not_pay_for_empty_rows(
    tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch has as many rows as are in use, not as many as its budget allows; the scores are the same."""
    config = ModelConfig.from_hf(tiny_weights)
    params = load_params(tiny_weights, config)
    asked = questions(config.vocab_size, longest=40)
    rows: list[int] = []
    computed = choice_scores._token_logprobs

    def watched(params: Any, adapter: Any, batch: dict[str, np.ndarray], *rest: Any, **named: Any) -> Any:
        assert (batch["until"].max(axis=1) > 0).any()
        rows.append(len(batch["tokens"]))
        return computed(params, adapter, batch, *rest, **named)

    monkeypatch.setattr(choice_scores, "_token_logprobs", watched)
    alone = scores_of(params, config, asked[:1], 4096)[0]
    assert rows == [1]
    rows.clear()
    many = scores_of(params, config, asked, 512, share=False)
    assert len(rows) > 1 and max(rows) > 1
    np.testing.assert_allclose(alone, many[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["default", "bfloat16"])
def test_batches_at_once_give_the_scores_of_one_after_another(
    precision: str, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits, also in a thread with another precision than JAX's default."""
    config = ModelConfig.from_hf(tiny_weights)
    params = load_params(tiny_weights, config)
    asked = questions(config.vocab_size, longest=40)
    found = []
    for at_once in (1, 2):
        monkeypatch.setattr(choice_scores, "_BATCHES_AT_ONCE", at_once)
        with jax.default_matmul_precision(precision):
            found.append(scores_of(params, config, asked, 256, share=False))
    exact = scores_of(params, config, asked, 256, share=False)
    for one, two, same in zip(*found, exact, strict=True):
        np.testing.assert_array_equal(one, two)
        assert (precision == "default") == np.array_equal(one, same)
