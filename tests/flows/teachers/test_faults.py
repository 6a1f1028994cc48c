"""Against a server that fails in every way, nothing is lost, each failure is counted, and budgets hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.engine.errors import StageFailed
from flows.teachers.answer_store import AnswerStore
from flows.teachers.ask_server import Asked, ask_server
from flows.teachers.estimate import describe, estimate
from jora_core.base.errors import InputError
from retrieval.settings.synthesis.question_generation import QuestionGeneration
from retrieval.synthesis.prompts import messages
from retrieval.synthesis.read_answers import usable
from tests.flows.teachers.fake_teacher import FakeTeacher, serve

ALL_FAULTS = {
    "429": 0.08,
    "500": 0.08,
    "503": 0.04,
    "cut": 0.08,
    "endless": 0.03,
    "no_completion": 0.04,
    "wrong_json": 0.05,
    "refusal": 0.05,
    "wrong_language": 0.04,
    "prose_around": 0.05,
}


def requests(count: int) -> list[Asked]:
    """Requests about so many texts."""
    found = []
    for number in range(count):
        text = f"The ferry number {number} leaves the harbour at dock {number}. It returns in the evening."
        system, user = messages("", [text], ["fact"], 2, False)
        found.append(Asked(f"{number:064x}", system, user, ["fact"], len((system + user).split())))
    return found


def settings(server: FakeTeacher, **teacher: Any) -> QuestionGeneration:
    given = {
        "base_url": server.url,
        "model": "fake",
        "retry_delay_seconds": 0.001,
        "timeout_seconds": 20,
        "max_concurrency": 4,
        **teacher,
    }
    return QuestionGeneration.model_validate({"teacher": given})


def ask(server: FakeTeacher, asked: list[Asked], folder: Path, key: str | None = None, **teacher: Any) -> Any:
    made = settings(server, **teacher)
    store = AnswerStore(folder, made.teacher.deciding())
    finished: list[int] = []

    def again() -> Iterator[Asked]:
        return iter(asked)

    try:
        counts = ask_server(again, made, False, store, key, lambda: finished.append(1))
        return counts, list(store.answers(one.id for one in asked))
    finally:
        store.close()


def test_nothing_is_lost_and_each_failure_is_counted(tmp_path: Path) -> None:
    asked = requests(150)
    with serve(FakeTeacher(faults=ALL_FAULTS, seed=3)) as server:
        counts, answers = ask(server, asked, tmp_path, max_retries=30, answer_attempts=6)
    assert counts["requests"] == counts["answered"] == counts["asked"] == len(answers) == 150
    assert all(answer.status == "ok" and usable(answer.text, ["fact"]) for answer in answers)
    assert counts["failed"] == {} and counts["unreadable"] == {}
    seen = server.seen_faults
    assert set(seen) == set(ALL_FAULTS)
    expected = {
        "429": seen["429"],
        "500": seen["500"],
        "503": seen["503"],
        "connection_cut": seen["cut"],
        "answer_without_end": seen["endless"],
        "no_chat_completion": seen["no_completion"],
        "no_questions_in_it": seen["wrong_json"],
        "refusal": seen["refusal"],
    }
    assert counts["retried"] == expected
    # Tokens of answers that could not be used are spent too.
    assert (counts["prompt_tokens"], counts["answer_tokens"]) == (server.prompt_tokens, server.answer_tokens)


def test_a_second_run_asks_nothing(tmp_path: Path) -> None:
    asked = requests(20)
    with serve(FakeTeacher()) as server:
        ask(server, asked, tmp_path)
        before = server.requests
        counts, answers = ask(server, asked, tmp_path)
    assert server.requests == before == 20 and counts["asked"] == 0 and len(answers) == 20


def test_the_budget_of_failures_ends_the_run_with_one_line_and_keeps_what_is_there(tmp_path: Path) -> None:
    asked = requests(60)
    with serve(FakeTeacher(faults={"500": 0.5}, seed=1)) as server:
        with pytest.raises(StageFailed) as failed:
            ask(server, asked, tmp_path, max_retries=0, max_failures=5, max_concurrency=1)
        said = str(failed.value)
        assert "\n" not in said and "6 500" in said and "teacher.max_failures (5)" in said
        done = sum(server.done.values())
        assert f"{done} of 60 requests are answered" in said
        server.faults.clear()
        counts, answers = ask(server, asked, tmp_path, max_retries=0)
    assert counts["asked"] == 60 - done and len(answers) == 60
    assert max(Counter(server.answered).values()) == 1


def test_failures_within_the_budget_are_counted_and_the_others_are_answered(tmp_path: Path) -> None:
    with serve(FakeTeacher(faults={"400": 0.1}, seed=2)) as server:
        counts, answers = ask(server, requests(50), tmp_path, max_failures=50)
    failed = server.seen_faults["400"]
    assert (
        failed and counts["failed"] == {"400": failed} and counts["answered"] == len(answers) == 50 - failed
    )


def test_unreadable_answers_are_kept_and_not_paid_for_again(tmp_path: Path) -> None:
    asked = requests(6)
    with serve(FakeTeacher(faults={"refusal": 1.0})) as server:
        counts, answers = ask(server, asked, tmp_path, answer_attempts=2)
        assert counts["unreadable"] == {"refusal": 6} and counts["retried"] == {"refusal": 6}
        assert {answer.status for answer in answers} == {"refusal"}
        ask(server, asked, tmp_path, answer_attempts=2)
        assert server.requests == 12


@pytest.mark.parametrize(
    ("budget", "fits"),
    [
        ({"max_tokens": 3000}, lambda server: server.prompt_tokens + server.answer_tokens <= 3000),
        (
            {"max_cost": 0.01, "input_price": 2, "output_price": 4},
            lambda server: 2 * server.prompt_tokens + 4 * server.answer_tokens <= 0.01e6,
        ),
    ],
)
def test_a_budget_is_never_passed(tmp_path: Path, budget: dict[str, Any], fits: Any) -> None:
    asked = requests(100)
    with serve(FakeTeacher()) as server:
        with pytest.raises(StageFailed, match="the budget is spent") as failed:
            ask(server, asked, tmp_path, max_answer_tokens=300, **budget)
        assert "\n" not in str(failed.value) and 0 < server.requests < 100 and fits(server)
        before = server.requests
        # What is spent stays spent: another run does not begin a new budget.
        with pytest.raises(StageFailed, match="the budget is spent"):
            ask(server, asked, tmp_path, max_answer_tokens=300, **budget)
        assert fits(server) and server.requests <= before + 1


def test_a_server_without_schemas_is_asked_without(tmp_path: Path) -> None:
    with serve(FakeTeacher(schema=False)) as server:
        counts, answers = ask(server, requests(12), tmp_path, max_concurrency=1)
        assert counts["structured_output"] is False and len(answers) == 12
        assert server.schemas == 2
        assert counts["retried"] == {"schema_refused": 1, "schema_with_lengths_refused": 1}
        with pytest.raises(StageFailed, match="schema_refused"):
            ask(server, requests(15), tmp_path, structured_output="on", max_failures=0)
    # Some servers take schemas, and no lengths of texts in them.
    with serve(FakeTeacher(lengths=False)) as server:
        counts, answers = ask(server, requests(12), tmp_path / "no lengths")
        assert counts["structured_output"] is True and len(answers) == 12
        assert set(counts["retried"]) == {"schema_with_lengths_refused"}
    with serve(FakeTeacher()) as server:
        ask(server, requests(3), tmp_path / "other", structured_output="off")
        assert server.schemas == 0


def test_retry_after_holds_all_requests_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[float] = []
    monkeypatch.setattr("flows.teachers.spending.Pace.hold", lambda self, seconds: held.append(seconds))
    with serve(FakeTeacher(faults={"429": 0.5})) as server:
        ask(server, requests(10), tmp_path, max_retries=50)
    assert held == [0.0] * server.seen_faults["429"]


def test_a_wrong_key_or_address_is_wrong_input(tmp_path: Path) -> None:
    with serve(FakeTeacher(key="right")) as server:
        with pytest.raises(InputError, match="refuses the key"):
            ask(server, requests(3), tmp_path, key="wrong")
        counts, _ = ask(server, requests(3), tmp_path, key="right")
        assert counts["answered"] == 3
    with pytest.raises(InputError, match="expected an address"):
        ask(server, requests(1), tmp_path, base_url="ftp://example.org")


def test_no_server_is_a_counted_failure(tmp_path: Path) -> None:
    with serve(FakeTeacher()) as server:
        url = server.url
    with pytest.raises(StageFailed, match=r"1 no_connection.*0 of 2 requests are answered"):
        ask(server, requests(2), tmp_path, base_url=url, max_retries=1, max_failures=0, max_concurrency=1)


def test_the_estimate_is_within_a_tenth_of_what_is_used(tmp_path: Path) -> None:
    asked = requests(200)
    with serve(FakeTeacher(faults={"wrong_json": 0.05, "500": 0.1})) as server:
        made = settings(server, input_price=1, output_price=3, answer_attempts=10, max_retries=20)
        store = AnswerStore(tmp_path, made.teacher.deciding())
        guessed = estimate(asked, made, False, store)
        assert guessed.requests == 200 and guessed.measured_on == 0 and "a guess" in describe(guessed)
        # A sample of twenty measures the teacher.
        ask_server(lambda: iter(asked[:20]), made, False, store, None, lambda: None)
        found = estimate(asked, made, False, store)
        before = server.prompt_tokens, server.answer_tokens
        ask_server(lambda: iter(asked), made, False, store, None, lambda: None)
        used = server.prompt_tokens - before[0], server.answer_tokens - before[1]
        assert estimate(asked, made, False, store).requests == 0
        store.close()
    assert (found.requests, found.answered, found.measured_on) == (180, 20, 20)
    assert found.prompt_tokens == pytest.approx(used[0], rel=0.1)
    assert found.answer_tokens == pytest.approx(used[1], rel=0.1)
    assert found.cost == pytest.approx((used[0] + 3 * used[1]) / 1e6, rel=0.1)


def test_a_damaged_store_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "answers.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(InputError, match=r"answers\.sqlite: file is not a database"):
        AnswerStore(tmp_path, {})
