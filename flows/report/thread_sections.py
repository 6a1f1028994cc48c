"""Blocks of the report about groups of comments, reply links as sets, and the conversations of links."""

from __future__ import annotations

from collections.abc import Sequence

from flows.report.blocks import Block, Prose, Table
from flows.report.facts import RunFacts
from flows.report.wording import score_text, system_name
from retrieval.evaluation.drawn_records import few_contexts

LINK_NAMES = {"link_precision": "Precision", "link_recall": "Recall", "link_f1": "F1"}
CONVERSATION_NAMES = {
    "one_minus_vi": "1 \u2212 VI",
    "adjusted_rand_index": "ARI",
    "one_to_one": "One-to-one",
    "shen_f1": "Shen F1",
    "exact_precision": "Exact P",
    "exact_recall": "Exact R",
    "exact_f1": "Exact F1",
}
SLICE_NAMES = {
    "distance": "Messages back to the right post",
    "right_post": "The right post is",
    "thread_messages": "Messages of the thread",
    "parents": "Right posts",
    "in_prompt": "A right post is",
    "addressed": "The comment",
}


def slice_blocks(facts: RunFacts, systems: Sequence[str]) -> list[Block]:
    """Return one table of reply@1 in groups of comments; nothing without groups.

    Args:
        facts: the run.
        systems: the systems to show.
    """
    found = facts.evaluation.get("slices")
    if not found:
        return []
    rows = tuple(
        (
            f"{SLICE_NAMES[kind]}: {group['group']}",
            f"{group['n']:,}",
            *(score_text(group["systems"].get(name)) for name in systems),
        )
        for kind, groups in found.items()
        for group in groups
    )
    headers = ("Comments", "n", *(system_name(name) for name in systems))
    return [Table("reply@1 in groups of comments, with 95 % intervals", headers, rows)]


def link_blocks(facts: RunFacts) -> list[Block]:
    """Return blocks with the scores of links and of conversations; nothing without them."""
    found = facts.evaluation.get("links")
    if not found:
        return []
    if not found["logs"]:
        return [
            Prose(
                "Reply links as sets are scored on threads of which every record was drawn, and "
                "`evaluate.max_records` left none whole."
            )
        ]
    words = (
        f"Reply links as sets: {found['messages']:,} annotated messages of {found['logs']:,} held-out "
        f"threads with {found['links']:,} links. A message that starts a conversation has a link to itself, "
        "which counts. Intervals resample whole threads."
    )
    if warning := few_contexts(found["logs"]):
        words += f" There are {warning}."
    if found["logs"] < found["of_logs"]:
        words += f" The others of {found['of_logs']:,} threads were not drawn whole."
    if found["without_record"]:
        words += (
            f" Messages without a record, which count as starts of the models: {found['without_record']:,}."
        )
    if found["second_parent"] is not None:
        words += (
            " The most trained model's second choice is a parent too from a probability of "
            f"{found['second_parent']:.2f}, chosen on training threads that it has not seen."
        )
    tables = [
        Table(
            title,
            ("System", *names.values()),
            tuple(
                (system_name(name), *(score_text(scores.get(key)) for key in names))
                for name, scores in found["systems"].items()
            ),
        )
        for title, names in (
            ("Links with 95 % intervals", LINK_NAMES),
            ("Conversations with 95 % intervals", CONVERSATION_NAMES),
        )
    ]
    return [Prose(words), *tables]
