"""The texts of prompts, and the documents that are read back from one."""

from __future__ import annotations

from retrieval.prompts import templates


def test_documents_of_a_prompt_are_found_again() -> None:
    documents = [
        ("Tea", "Tea is hot.\n\nIt is brewed."),
        ("", "See [2] there."),
        ("Ice", "Cold.\n\nQuestion: why?"),
    ]
    shown = templates.qa_input(documents, "What?\n\nQuestion")
    found = templates.documents_of(shown, 3)
    assert [text.splitlines()[-1] for text in found] == ["It is brewed.", "See [2] there.", "Question: why?"]
    assert templates.documents_of("no documents", 2) == ["", ""]
    assert templates.documents_of("nothing", 0) == []


def test_text_that_may_belong_to_two_documents_is_in_neither() -> None:
    shown = templates.qa_input([("", "One.\n[2] false"), ("", "Two."), ("", "Three.")], "What?")
    assert templates.documents_of(shown, 3) == ["One.", "Two.", "Three."]
