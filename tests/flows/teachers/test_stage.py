"""The stage from documents to records: cache, keys, decisions, plan, secrets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

pytest.importorskip("py3langid", reason="py3langid is not installed; run `make install`")

from flows.commands.prompts.review_files import read_review, write_review
from flows.configuration.load import load_config
from flows.engine.artifact_store import Store
from flows.engine.errors import StageFailed
from flows.engine.keys import identify
from flows.stages import STAGES
from flows.stages.questions.ask_teacher import estimate_questions
from jora_core.base.errors import InputError
from tests.flows.teachers.fake_teacher import FakeTeacher, serve
from tests.flows.teachers.project import (
    command,
    config_of,
    raw_config,
    run_stage,
    write_config,
    write_documents,
)

LOCAL = {"kind": "local", "base_url": None, "model": None}
KEY = "planted-key-7f3a9c51e0b2"


def rows(folder: Path, name: str = "questions.parquet") -> list[dict[str, Any]]:
    return pq.read_table(folder / name).to_pylist()


def test_from_documents_to_records(tmp_path: Path) -> None:
    write_documents(tmp_path / "documents.jsonl", 40)
    with serve(
        FakeTeacher(faults={"wrong_language": 0.1, "not_standalone": 0.1, "not_in_text": 0.1})
    ) as server:
        config = config_of(
            tmp_path,
            server.url,
            kinds=["fact", "how_to", "unanswerable", "comparison"],
            qa={"answer_style": "reasoned", "chunk_tokens": 48, "n_contexts": 2},
        )
        made = run_stage(config)
        found = rows(made)
        metrics = json.loads((made / "metrics.json").read_text())
        assert set(metrics["kinds"]) == {"fact", "how_to", "unanswerable", "comparison"}
        faults = {"wrong_language", "question_not_standalone", "answer_not_in_text"}
        assert faults <= set(metrics["refused"])
        assert sum(metrics["refused"].values()) == len(rows(made, "refused.parquet"))
        assert metrics["questions"] == len(found) == metrics["round_trip"]["all"]["questions"]
        assert all(row["synthetic"] and row["teacher"] == "fake" and row["created"] for row in found)
        records = rows(run_stage(config, "build-context"), "records.parquet")
        asked = server.requests
        run_stage(config)
    assert server.requests == asked, "a finished stage asks nothing"
    assert len(records) == len(found) and all(record["synthetic"] for record in records)
    assert {record["split"] for record in records} == {"train", "test"}
    reasoned = [r for r in records if "##begin_quote##" in r["output"]]
    assert reasoned and all(r["output"].endswith(f"##Answer: {r['gold'][0]}") for r in reasoned)
    assert {r["output"] for r in records if not r["oracle_in_context"]} == {"Not in the documents"}
    by_kind = {row["id"]: row["kind"] for row in found}
    pairs = [r for r in records if by_kind[r["id"].removeprefix("qa:")] == "comparison"]
    assert pairs and all(len(r["oracle_ids"]) == 2 for r in pairs)


@pytest.mark.parametrize(
    "count", [40, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])]
)
def test_a_changed_document_asks_for_its_chunks_only(tmp_path: Path, count: int) -> None:
    source = tmp_path / "documents.jsonl"
    write_documents(source, count)
    with serve(FakeTeacher()) as server:
        config = config_of(tmp_path, server.url, teacher={"max_concurrency": 16})
        before = run_stage(config)
        assert server.requests == count
        write_documents(source, count, changed=21)
        after = run_stage(config)
        assert after != before and server.requests == count + 1
        # Back again: the artifact is still there.
        write_documents(source, count)
        assert run_stage(config) == before and server.requests == count + 1
    # The questions about all other documents are the same bytes.
    others = [
        [json.dumps(row, sort_keys=True) for row in rows(folder) if row["document_id"] != "d0021"]
        for folder in (before, after)
    ]
    assert others[0] == others[1] and len(others[0]) == len(rows(before)) - 2


def test_held_out_documents_are_asked_about_only_if_the_configuration_says_so(tmp_path: Path) -> None:
    write_documents(tmp_path / "documents.jsonl", 60)
    human = tmp_path / "questions.jsonl"
    human.write_text(
        "".join(
            json.dumps(
                {
                    "id": f"h{n}",
                    "document_id": f"d{n:04}",
                    "question": f"What costs {n}?",
                    "answers": ["crowns"],
                }
            )
            + "\n"
            for n in range(60)
        )
    )
    with serve(FakeTeacher()) as server:
        config = config_of(tmp_path, server.url, held_out=False, qa={"questions": str(human)})
        made = run_stage(config)
        records = rows(run_stage(config, "build-context"), "records.parquet")
    held_out = {r["context_id"] for r in records if r["split"] == "test"}
    assert held_out and server.requests == 60 - len(held_out)
    assert not held_out & {row["document_id"] for row in rows(made)}
    assert {r["synthetic"] for r in records if r["split"] == "test"} == {False}
    assert {r["synthetic"] for r in records if r["split"] == "train"} == {False, True}


def test_no_held_out_question_is_said_before_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_documents(tmp_path / "documents.jsonl", 40)
    with serve(FakeTeacher()) as server:
        for share, said in ((0.2, False), (0.0, True)):
            raw = raw_config(tmp_path, server.url)
            raw["context"]["test_share"] = share
            config = load_config(write_config(tmp_path, raw))
            run_stage(config)
            run_stage(config, "build-context")
            assert ("questions is about a held-out document" in capsys.readouterr().err) == said


def test_decisions_are_an_input_and_are_applied(tmp_path: Path) -> None:
    write_documents(tmp_path / "documents.jsonl", 12)
    with serve(FakeTeacher(faults={"not_standalone": 0.3})) as server:
        config = config_of(tmp_path, server.url, qa={"answer_style": "reasoned"})
        made = run_stage(config)
        review = read_review(made)
        refused = next(row for row in review if row["checks"])
        accepted = [row for row in review if not row["checks"]]
        accepted[0] |= {"decision": "refuse"}
        accepted[1] |= {"decision": "edit", "question": "What do tickets cost?", "answer": "crowns"}
        refused |= {"decision": "accept"}
        decisions = tmp_path / "decisions.csv"
        write_review(decisions, review, "ferries")
        decided = config_of(tmp_path, server.url, qa={"answer_style": "reasoned"}, decisions=str(decisions))
        again = run_stage(decided)
        asked = server.requests
    assert again != made and asked == 12
    found = {row["id"]: row for row in rows(again)}
    assert accepted[0]["id"] not in found and found[refused["id"]]["decision"] == "accept"
    edited = found[accepted[1]["id"]]
    assert (edited["question"], edited["answers"]) == ("What do tickets cost?", ["crowns"])
    # The reasons on the page still led to the answer before the edit.
    assert edited["reasoned"].startswith("##begin_quote##") and edited["reasoned"].endswith(
        "##Answer: crowns"
    )
    assert edited["synthetic"] and edited["decision"] == "edit"
    assert len(found) == len(rows(made))


def test_review_pages_hold_the_questions_as_data(tmp_path: Path) -> None:
    row = dict.fromkeys(("id", "decision", "kind", "question", "answer", "reasoned", "evidence"), "x")
    row |= {"document_id": "d", "checks": "", "question": "</script><b>Who?"}
    page = tmp_path / "r.html"
    write_review(page, [row], "demo </script>")
    text = page.read_text(encoding="utf-8")
    assert text.count("</script>") == 1 and "\\u003c/script>\\u003cb>Who?" in text


def test_the_estimate_of_the_plan(tmp_path: Path) -> None:
    write_documents(tmp_path / "documents.jsonl", 80)
    with serve(FakeTeacher()) as server:
        prices = {"input_price": 2, "output_price": 5}
        path = write_config(tmp_path, raw_config(tmp_path, server.url, teacher=prices))
        sampled = command("questions", str(path), "--sample", "10", "--json")
        out, err = sampled.communicate(timeout=200)
        assert sampled.returncode == 0, err
        assert json.loads(out)["asked"]["answered"] == server.requests == 10
        planned = command("plan", str(path), "--json")
        out, err = planned.communicate(timeout=200)
        assert planned.returncode == 0, err
        estimate = json.loads(out)["questions"]
        before = server.prompt_tokens, server.answer_tokens
        config = load_config(path)
        run_stage(config)
        used = server.prompt_tokens - before[0], server.answer_tokens - before[1]
        assert estimate["requests"] == server.requests - 10 == 70
        assert estimate["prompt_tokens"] == pytest.approx(used[0], rel=0.1)
        assert estimate["answer_tokens"] == pytest.approx(used[1], rel=0.1)
        assert estimate["cost"] == pytest.approx((2 * used[0] + 5 * used[1]) / 1e6, rel=0.1)
        after = estimate_questions(config, Store(Path(config.store)).cache_dir)
    assert (after.requests, after.answered) == (0, 80)


def test_no_key_is_in_any_file_or_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_documents(tmp_path / "documents.jsonl", 10)
    monkeypatch.setenv("TEACHER_KEY", KEY)
    faults = {"500": 0.3, "wrong_json": 0.2}
    with serve(FakeTeacher(key=KEY, faults=faults, seed=5)) as server:
        teacher = {"api_key_env": "TEACHER_KEY", "max_retries": 20}
        path = write_config(tmp_path, raw_config(tmp_path, server.url, teacher=teacher))
        texts = []
        for words in (["questions", str(path), "--review", str(tmp_path / "r.html")], ["context", str(path)]):
            done = command(*words)
            texts += done.communicate(timeout=250)
            assert done.returncode == 0, texts[-1]
        assert server.requests > 10
        # The server repeats the key in its error, and the run fails with it.
        server.faults = {"500": 1.0}
        wrong = command(
            "questions", str(path), "--set", "context.qa.generate.seed=1",
            "--set", "context.qa.generate.teacher.max_failures=0",
            "--set", "context.qa.generate.teacher.max_retries=0",
        )  # fmt: skip
        texts += wrong.communicate(timeout=250)
        assert wrong.returncode == 1 and "status 500" in texts[-1]
        server.key = "another"
        refused = command("questions", str(path), "--set", "context.qa.generate.seed=2")
        texts += refused.communicate(timeout=250)
        assert refused.returncode == 2 and "bad key" in texts[-1]
    held = [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert held == [] and not any(KEY in text for text in texts)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher": {"api_key_env": "sk-1234567890"}}, "expected the name of an environment variable"),
        ({"teacher": {"api_key_env": "NO_SUCH_VARIABLE"}}, "NO_SUCH_VARIABLE is not set"),
        ({"teacher": {"kind": "local"}}, "base_url has no effect for kind local"),
        ({"teacher": {"model": None}}, "teacher.model is needed"),
        ({"teacher": {"max_cost": 1.0}}, "needs input_price and output_price"),
        ({"kinds": ["fact", "fact"]}, "kinds names one twice"),
        ({"teacher": {**LOCAL, "max_tokens": 100}}, "no effect for kind local"),
        ({"kinds": ["unanswerable"], "qa": {"abstain": False}}, "kinds has unanswerable"),
        ({"qa": {"synthetic_questions": "x.parquet"}}, "exclude each other"),
        ({"qa": {"synthetic_held_out": True}}, "goes with synthetic_questions"),
        ({"decisions": "no-such-file.csv"}, "no-such-file.csv"),
    ],
)
def test_wrong_settings_are_one_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    write_documents(tmp_path / "documents.jsonl", 3)
    with pytest.raises(InputError) as refused:
        run_stage(config_of(tmp_path, "http://127.0.0.1:9/v1", **changes))
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert "1234567890" not in str(refused.value)


def test_where_and_how_the_teacher_is_asked_is_not_in_the_key(tmp_path: Path) -> None:
    write_documents(tmp_path / "documents.jsonl", 3)

    def key(url: str = "http://a/v1", **teacher: Any) -> str:
        config = config_of(tmp_path, url, teacher=teacher)
        return identify(config, STAGES, until="make-questions")["make-questions"].key

    same = {
        "max_concurrency": 9,
        "max_retries": 1,
        "input_price": 1.0,
        "api_key_env": "KEY",
        "timeout_seconds": 5,
    }
    assert key() == key("http://b/v1", **same)
    assert key() != key(model="other") and key() != key(temperature=0.9)


def test_without_a_teacher_nothing_changes(tmp_path: Path) -> None:
    write_documents(tmp_path / "documents.jsonl", 3)
    raw = raw_config(tmp_path, "http://a/v1")
    del raw["context"]["qa"]["generate"]
    raw["context"]["qa"]["questions"] = str(tmp_path / "documents.jsonl")
    config = load_config(write_config(tmp_path, raw))
    identities = identify(config, STAGES)
    assert "make-questions" not in identities
    assert not {"generate", "synthetic_held_out"} & set(identities["build-context"].config["context"]["qa"])
    assert identities["build-context"].upstream == {}


def test_a_stopped_server_ends_the_stage_with_one_line(tmp_path: Path) -> None:
    write_documents(tmp_path / "documents.jsonl", 3)
    config = config_of(tmp_path, "http://127.0.0.1:9/v1", teacher={"max_retries": 0, "max_failures": 0})
    with pytest.raises(StageFailed, match="0 of 3 requests are answered"):
        run_stage(config)
