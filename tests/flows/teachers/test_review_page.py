"""The page on which a person decides about questions, in a real browser: its file is read by the stage."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.commands.prompts.review_files import write_review
from retrieval.synthesis.decisions import COLUMNS, Decision, read_decisions

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(900),
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is missing: apt-get install chromium"),
]


def row(name: str, **values: str) -> dict[str, Any]:
    given = {"id": name, "kind": "fact", "question": f"Who is {name}?", "answer": name, "document_id": "d.md"}
    return {**dict.fromkeys(COLUMNS, ""), **given, **values}


def test_decisions_that_are_made_on_the_page(tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: make install")
    rows = [
        row("ann", reasoned="##begin_quote## Ann. ##end_quote## ##Answer: ann"),
        row("bob", question="</script><script>document.title='run'</script>Who?"),
        row("cid", checks="question_not_standalone"),
        row("dan"),
    ]
    page_file = tmp_path / "review.html"
    write_review(page_file, rows, "demo")
    with playwright.sync_playwright() as driver:
        # Without the sandbox, because containers often run as root.
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        view = browser.new_page()
        view.set_default_timeout(120_000)
        errors: list[str] = []
        view.on("pageerror", lambda error: errors.append(str(error)))
        view.goto(page_file.as_uri())
        assert view.title() == "Review of questions", "a question ran as a script"
        articles = view.locator("article")
        assert articles.count() == 4
        articles.nth(0).locator("textarea").nth(1).fill("Ann of Norwick")
        articles.nth(1).get_by_label("refuse").check()
        articles.nth(2).get_by_label("accept").check()
        assert view.get_by_role("status").text_content() == "1 accepted, 1 edited, 1 refused, 1 undecided"
        with view.expect_download() as saving:
            view.get_by_role("button", name="Save decisions").click()
        saved = tmp_path / "decisions.jsonl"
        saving.value.save_as(saved)
        # A person goes on tomorrow: the page keeps what was decided.
        view.reload()
        assert view.locator("article").count() == 1
        view.get_by_label("Show").select_option("refused")
        assert view.locator("article").count() == 1 and not errors
        browser.close()
    assert read_decisions(saved) == {
        "ann": Decision("edit", "Who is ann?", "Ann of Norwick", rows[0]["reasoned"]),
        "bob": Decision("refuse"),
        "cid": Decision("accept"),
    }
