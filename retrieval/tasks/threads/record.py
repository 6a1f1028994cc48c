"""One thread record: which candidates stand in the prompt, what it teaches, what gives it away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retrieval.corpus.types import Post
from retrieval.evaluation.task_report import TaskReport
from retrieval.guards import leaks
from retrieval.prompts import templates
from retrieval.prompts.distractors import pick
from retrieval.prompts.token_budget import Count, fit
from retrieval.settings.tasks import ThreadsTask
from retrieval.tasks.threads.window import window_stride, within_budget
from retrieval.text.normalize import seeded_hash, seeded_share


def thread_record(
    name: str,
    thread_id: str,
    source: str,
    split: str,
    comment: Post,
    candidates: Sequence[Post],
    wanted: Sequence[int],
    gold: Sequence[int],
    parents: Sequence[Post],
    task: ThreadsTask,
    seed: int,
    count: Count,
    report: TaskReport,
) -> dict[str, Any] | None:
    """The record of a comment; None where it would leak its answer, or has none to teach (counted in
    `report`).

    Args:
        wanted: places of the candidates, best first; of a window, its posts alone, newest first.
        gold: places of those that the comment answers.
        parents: every post that it answers, candidate or not, in thread order.
    """
    training = split == "train"
    # Held-out prompts and windows hold what they hold, whatever is right.
    choose = training and task.contexts == "retrieved"
    chosen = (
        _chosen(name, wanted, gold, task, seed, split, report) if choose else list(wanted[: task.n_contexts])
    )
    texts = _fitted(chosen, candidates, set(gold) if choose else set(), task, count, split, report)
    places = sorted(texts)
    context = [candidates[place] for place in places]
    labels = [templates.post_label(post.author, n) for n, post in enumerate(context, start=1)]
    answers = [labels[places.index(place)] for place in gold if place in texts]
    if training and not answers and not task.abstain:
        report.tally.dropped["training_parent_over_budget"] += 1
        return None
    taught = answers
    if not answers and task.abstain:
        taught = [templates.NO_POST]
        report.note(split, "abstained")
    shown = [(post.author, texts[place]) for place, post in zip(places, context, strict=True)]
    record = {
        "id": name,
        "instruction": templates.instruction(
            templates.THREADS_INSTRUCTION, templates.NO_POST if task.abstain else None
        ),
        "input": templates.threads_input(shown, comment.author, comment.text),
        "output": taught[0] if taught else "",
        "task": "threads",
        "split": split,
        "context_id": thread_id,
        "context_ids": [post.id for post in context],
        "oracle_ids": [post.id for post in parents],
        "oracle_in_context": bool(answers),
        "gold": taught,
        "choices": [*labels, templates.NO_POST] if task.abstain else labels,
        "source": source,
        "source_row": comment.row,
    }
    found = _leaks(record, comment, parents, context, answers, task)
    if found:
        report.tally.dropped[found[0]] += 1
        return None
    return record


def _chosen(
    name: str,
    fused: Sequence[int],
    gold: Sequence[int],
    task: ThreadsTask,
    seed: int,
    split: str,
    report: TaskReport,
) -> list[int]:
    """The places in a training prompt, most wanted first: what the retriever finds, and the right post among
    it unless the seed says that this one does without.
    """
    right = set(gold)
    others = (place for place in fused if place not in right)
    draw = lambda place: seeded_hash(seed, "distractor", name, str(place))  # noqa: E731
    if seeded_share(seed, "oracle", name) >= task.oracle_share:
        chosen, outside = pick(others, task.n_contexts, task.ranks, draw)
        report.note(split, "distractor_outside_ranks", outside)
        return chosen
    if task.ranks is not None:
        best = next(place for place in fused if place in right)
        drawn, outside = pick(others, task.n_contexts - 1, task.ranks, draw)
        report.note(split, "distractor_outside_ranks", outside)
        return [best, *drawn]
    chosen = list(fused[: task.n_contexts])
    if not right & set(chosen):
        chosen[-1] = next(place for place in fused if place in right)
        report.note(split, "right_post_put_in")
    return chosen


def _fitted(
    chosen: Sequence[int],
    candidates: Sequence[Post],
    right: set[int],
    task: ThreadsTask,
    count: Count,
    split: str,
    report: TaskReport,
) -> dict[int, str]:
    """Text by place of the posts that are within the budget."""
    texts = [candidates[place].text for place in chosen]
    if task.max_context_tokens is None:
        return dict(zip(chosen, texts, strict=True))
    labels = [count(f"\n{templates.post_label(candidates[place].author, 10)}\n\n") for place in chosen]
    left = len(chosen)
    if task.contexts == "window":
        costs = [count(text) + label for text, label in zip(texts, labels, strict=True)]
        left = within_budget(costs, task.max_context_tokens, window_stride(task.n_contexts))
    protected = [i for i, place in enumerate(chosen) if place in right]
    # No sentence of a post is the answer: a long one may lose its end.
    fitted = fit(texts[:left], task.max_context_tokens, count, protected, lambda text: "", labels[:left])
    report.note(split, "context_shortened", fitted.shortened or left < len(chosen))
    report.note(split, "context_over_budget", fitted.over)
    return {place: text for place, text in zip(chosen[:left], fitted.texts, strict=True) if text is not None}


def _leaks(
    record: dict[str, Any],
    comment: Post,
    parents: Sequence[Post],
    context: Sequence[Post],
    answers: Sequence[str],
    task: ThreadsTask,
) -> list[str]:
    """What gives the answer away, or was not there yet. In IRC people repeat themselves; nobody quotes."""
    found = []
    if leaks.later_contexts(comment.time, (post.time for post in context)):
        found.append(leaks.LATER_CONTEXT)
    quoting = [] if task.format == "irc" else [parent.text for parent in parents]
    links = task.format == "4chan"
    return found + leaks.thread_leaks(record, comment.text, quoting, links=links, labels=answers)
