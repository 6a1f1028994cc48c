"""Build one thread record: the posts in its prompt, the answer that it teaches, and a check for leaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from retrieval.corpus.types import Post
from retrieval.evaluation.task_report import TaskReport
from retrieval.guards import leaks
from retrieval.prompts import templates
from retrieval.prompts.distractors import pick
from retrieval.prompts.token_budget import Count, fit
from retrieval.settings.tasks import ThreadsTask
from retrieval.settings.thread_formats import THREAD_FORMATS
from retrieval.tasks.threads.store import Reply
from retrieval.tasks.threads.window import window_stride, within_budget
from retrieval.text.labels import NO_TEXT
from retrieval.text.normalize import seeded_hash, seeded_share


@dataclass(frozen=True)
class ThreadRecordBuilder:
    """A builder of thread records, with the settings that all records of a build share.

    Attributes:
        task: the settings of the task, with the detected format.
        seed: seed of the draws.
        count: counts the tokens of a text, for the budget.
    """

    task: ThreadsTask
    seed: int
    count: Count

    def record(self, reply: Reply, wanted: Sequence[int], report: TaskReport) -> dict[str, Any] | None:
        """Build the record of a reply.

        A record that would reveal its answer, or that has no answer to teach, is dropped and counted. Then
        the result is None.

        Args:
            reply: the comment.
            wanted: places of the candidates that the prompt may hold, highest priority first. With
                `contexts: window`, these are the posts of the window, newest first.
            report: counts dropped records and events in the building.
        """
        task, comment, candidates = self.task, reply.comment, reply.candidates
        gold = reply.gold
        training = reply.split == "train"
        # Held-out prompts and windows hold what they hold, whether the right post is there or not.
        choose = training and task.contexts == "retrieved"
        chosen = self._chosen(reply, wanted, report) if choose else list(wanted[: task.n_contexts])
        texts = self._fitted(reply, chosen, set(gold) if choose else set(), report)
        # The order of the numbers, which is that of `context_ids` and of the choices.
        places = sorted(texts, key=wanted.index if task.numbering == "rank" else None)
        context = [candidates[place] for place in places]
        labels = [templates.post_label(post.author, n) for n, post in enumerate(context, start=1)]
        right_labels = [labels[places.index(place)] for place in gold if place in texts]
        if training and not right_labels and not task.abstain:
            report.tally.dropped["training_parent_over_budget"] += 1
            return None
        taught = right_labels
        if not right_labels and task.abstain:
            taught = [templates.NO_POST]
            if reply.parents:
                report.note(reply.split, "abstained")
        # In time order and not by rank, because a conversation out of order is hard to understand.
        shown = [(label, texts[place]) for place, label in sorted(zip(places, labels, strict=True))]
        record = {
            "id": reply.name,
            "instruction": templates.instruction(
                templates.THREADS_INSTRUCTION, templates.NO_POST if task.abstain else None
            ),
            "input": templates.threads_input(shown, comment.author, comment.text),
            "output": taught[0] if taught else "",
            "task": "threads",
            "split": reply.split,
            "context_id": reply.thread.id,
            "context_ids": [post.id for post in context],
            "oracle_ids": [post.id for post in reply.parent_posts],
            "oracle_in_context": bool(right_labels),
            "gold": taught,
            "choices": [*labels, templates.NO_POST] if task.abstain else labels,
            "source": reply.thread.source,
            "source_row": comment.row,
        }
        # On the finished record, so that a mistake in any step before is found as well.
        leak = self._leak(record, reply, context, right_labels)
        if leak is not None:
            report.tally.dropped[leak] += 1
            return None
        if task.direction == "channel":
            inputs = [
                templates.channel_input(post.author, texts[place], comment.author)
                for place, post in zip(places, context, strict=True)
            ]
            record |= {
                "instruction": templates.CHANNEL_INSTRUCTION,
                "output": comment.text or NO_TEXT,
                "choice_inputs": inputs,
            }
            # Held-out comments may have no right post in the prompt. Their `input`, which has all posts, is
            # for people to read.
            if training:
                record["input"] = inputs[labels.index(right_labels[0])]
        return record

    def _chosen(self, reply: Reply, wanted: Sequence[int], report: TaskReport) -> list[int]:
        """Return the places of the posts in a training prompt, highest priority first.

        These are the first places of the ranking. The right post is among them, unless the seed decides that
        this prompt lacks it.
        """
        task = self.task
        right = set(reply.gold)
        others = (place for place in wanted if place not in right)

        def draw(place: int) -> int:
            return seeded_hash(self.seed, "distractor", reply.name, str(place))

        if not right or seeded_share(self.seed, "oracle", reply.name) >= task.oracle_share:
            chosen, outside = pick(others, task.n_contexts, task.ranks, draw)
            report.note(reply.split, "distractor_outside_ranks", outside)
            return chosen
        # Only distractors are drawn. The right post is added to them, independent of its rank.
        if task.ranks is not None:
            # A comment may answer several posts. One of them is enough; the best ranked one is taken.
            best = next(place for place in wanted if place in right)
            drawn, outside = pick(others, task.n_contexts - 1, task.ranks, draw)
            report.note(reply.split, "distractor_outside_ranks", outside)
            return [best, *drawn]
        chosen = list(wanted[: task.n_contexts])
        if not right & set(chosen):
            # The lowest ranked post makes way for the right one.
            chosen[-1] = next(place for place in wanted if place in right)
            report.note(reply.split, "right_post_put_in")
        return chosen

    def _fitted(
        self, reply: Reply, chosen: Sequence[int], protected: set[int], report: TaskReport
    ) -> dict[int, str]:
        """Return, by place, the texts of the chosen posts within the budget. `protected` posts stay."""
        task, candidates = self.task, reply.candidates
        texts = [candidates[place].text for place in chosen]
        if task.max_context_tokens is None:
            return dict(zip(chosen, texts, strict=True))
        # Numbers in a prompt are not known before it is cut; two digits are the usual length.
        labels = [
            self.count(f"\n{templates.post_label(candidates[place].author, 10)}\n\n") for place in chosen
        ]
        left = len(chosen)
        if task.contexts == "window":
            costs = [self.count(text) + label for text, label in zip(texts, labels, strict=True)]
            left = within_budget(costs, task.max_context_tokens, window_stride(task.n_contexts))
        kept = [i for i, place in enumerate(chosen) if place in protected]
        # No sentence of a post is the answer, so a long post may lose its end.
        fitted = fit(texts[:left], task.max_context_tokens, self.count, kept, lambda text: "", labels[:left])
        report.note(reply.split, "context_shortened", fitted.shortened or left < len(chosen))
        report.note(reply.split, "context_over_budget", fitted.over)
        return {
            place: text for place, text in zip(chosen[:left], fitted.texts, strict=True) if text is not None
        }

    def _leak(
        self, record: dict[str, Any], reply: Reply, context: Sequence[Post], right_labels: Sequence[str]
    ) -> str | None:
        """Return the reason to drop the record, or None if it is no leak.

        A leak is a text that reveals the answer, or a post that is later than the comment.
        """
        comment = reply.comment
        if leaks.later_contexts(comment.time, (post.time for post in context)):
            return leaks.LATER_CONTEXT
        format = THREAD_FORMATS[self.task.format]
        parents = [post.text for post in reply.parent_posts] if format.quotes_parents else []
        found = leaks.thread_leaks(
            record, comment.text, parents, links=format.quotelinks, labels=right_labels
        )
        # One reason for each record, so that the counts of dropped records add up.
        return found[0] if found else None
