"""Build one document record: the documents in its prompt, and the answer that it teaches.

A training prompt holds the right documents with probability P, beside distractors that the retriever ranks
high. A held-out prompt holds the documents that the retriever finds, right or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retrieval.corpus.types import Document, Question
from retrieval.evaluation.task_report import TaskReport
from retrieval.guards import leaks
from retrieval.prompts import answer_styles, templates
from retrieval.prompts.answer_styles import AnswerTemplate, Passage
from retrieval.prompts.distractors import CopyTest, merged, pick
from retrieval.prompts.token_budget import Count, fit
from retrieval.settings.tasks import QaTask
from retrieval.text.labels import titled
from retrieval.text.normalize import seeded_hash, seeded_share
from retrieval.text.supporting_facts import ShownSentence, as_texts, sentence_places


def _shown_sentences(documents: Mapping[int, Document], context: Mapping[int, str]) -> list[ShownSentence]:
    """Return the numbered sentences of the documents of a prompt, with their places in its `input`.

    Args:
        documents: the documents in prompt order, by place.
        context: their texts as the prompt shows them, from which sentences may be cut.
    """
    found = []
    begin = 0
    for number, (place, document) in enumerate(documents.items(), start=1):
        shown = context[place]
        line = templates.document_line(number, document.title, shown)
        # The text is at the end of its line, behind number and title.
        first = begin + len(line) - len(shown)
        begin += len(line) + 1
        sentences = [document.text[low:high] if low >= 0 else "" for low, high in document.sentences]
        found += [
            ShownSentence(document.context_id, n, first + low, first + high)
            for n, (low, high) in enumerate(sentence_places(sentences, shown))
            if low >= 0
        ]
    return found


@dataclass(frozen=True)
class RankedQuestion:
    """A question with the documents that the retriever found for it.

    Attributes:
        question: the question.
        split: "train" or "test".
        oracles: places of the documents that hold the answer.
        fused: places of the documents that the retriever found, the best first.
    """

    question: Question
    split: str
    oracles: tuple[int, ...]
    fused: Sequence[int]

    @property
    def needed(self) -> list[int]:
        """The oracles that a prompt needs: all of them, or the best ranked one if one oracle is enough."""
        if self.question.needs_all:
            return list(self.oracles)
        return [next((place for place in self.fused if place in self.oracles), self.oracles[0])]


@dataclass(frozen=True)
class QaBuilder:
    """A builder of document records, with the settings and functions that all records of a build share.

    Attributes:
        task: the task's settings.
        seed: seed of the draws.
        near_duplicates: similarity from which a text is a copy of another; "off": only equal texts are.
        count: counts the tokens of a text, for the budget.
        document: returns the document at a place.
        content: returns the digest of the words of the document at a place.
        held_out: returns whether the document at a place belongs to the test split.
        template: the user's template of taught answers, for the answer style "template".
    """

    task: QaTask
    seed: int
    near_duplicates: float | str
    count: Count
    document: Callable[[int], Document]
    content: Callable[[int], bytes]
    held_out: Callable[[int], bool]
    template: AnswerTemplate | None = None

    def context(self, group: Sequence[RankedQuestion], report: TaskReport) -> dict[int, str]:
        """Return the documents that the prompts of a group share, as text by place in prompt order."""
        split = group[0].split
        wanted: list[int] = []
        if split == "test":
            # A held-out question has a group of its own, so the first question is the only one.
            chosen = [p for p in group[0].fused if not self._later(p, group)][: self.task.n_contexts]
        else:
            wanted = list(
                dict.fromkeys(p for ranked in group if self._with_oracle(ranked) for p in ranked.needed)
            )
            size = max(self.task.n_contexts, len(wanted))
            if len(group) > 1:
                # Several right documents must not crowd the distractors out: there are as many as in the
                # prompt of one question.
                size = self.task.n_contexts + max(len(wanted) - 1, 0)
            name = group[0].question.id
            distractors, outside = pick(
                self._usable(group),
                size - len(wanted),
                self.task.ranks,
                # By ids, not places: a document that is added to the corpus changes no draw.
                lambda place: seeded_hash(self.seed, "distractor", name, self.document(place).id),
            )
            report.note(split, "distractor_outside_ranks", outside)
            chosen = wanted + distractors
        texts = self._fitted(chosen, group, wanted, report)
        name = group[0].question.id
        # In a seeded order, because otherwise the right document would always be first.
        order = sorted(texts, key=lambda p: seeded_hash(self.seed, "order", name, self.document(p).id))
        return {place: texts[place] for place in order}

    def record(
        self, ranked: RankedQuestion, context: dict[int, str], context_id: str, report: TaskReport
    ) -> dict[str, Any] | None:
        """Build the record of one question with a context.

        A record that would reveal its answer is dropped and counted. Then the result is None.

        Args:
            ranked: the question.
            context: text by place, in prompt order, as `context` returned it.
            context_id: id of the context that the record belongs to.
            report: counts dropped records and events in the building.
        """
        question, task = ranked.question, self.task
        documents = {place: self.document(place) for place in context}
        later = leaks.later_contexts(question.time, (document.time for document in documents.values()))
        # If the right document is later than the question, no prompt can answer the question without
        # knowledge of its future.
        if later or any(self._later(place, [ranked]) for place in ranked.needed):
            report.tally.dropped[leaks.LATER_CONTEXT] += 1
            return None
        passages = {p: Passage(d.id, d.title, context[p]) for p, d in documents.items()}
        # In a held-out prompt, an oracle may not be retrieved, or be dropped for the budget.
        there = [place for place in ranked.oracles if place in context]
        enough = len(there) == len(ranked.oracles) if question.needs_all else bool(there)
        # A question that its documents do not answer has no answer in any prompt.
        enough = enough and bool(question.answers)
        shown = templates.qa_input([(p.title, p.text) for p in passages.values()], question.text)
        name = f"qa:{question.id}"
        taught = answer_styles.taught_answer(
            task.answer_style,
            self.template,
            record=name,
            question=question.text,
            answers=question.answers,
            direct=next(iter(question.answers), ""),
            passages=list(passages.values()),
            oracles=[passages[place] for place in there] if enough else [],
            abstain=templates.NO_DOCUMENT if task.abstain else None,
            reasoned=question.reasoned,
        )
        report.note(ranked.split, taught.counted)
        report.note(ranked.split, "synthetic" if question.synthetic else "")
        # Only a user's template can do this: other quotations are taken from the texts of the prompt.
        if answer_styles.false_quotes(taught.output, shown):
            report.tally.dropped[leaks.FALSE_QUOTE] += 1
            return None
        return {
            "id": name,
            "instruction": templates.instruction(
                templates.QA_INSTRUCTION,
                templates.NO_DOCUMENT if task.abstain else None,
                task.quotes_first,
            ),
            "input": shown,
            "output": taught.output,
            "task": "qa",
            "split": ranked.split,
            "context_id": context_id,
            "context_ids": [document.id for document in documents.values()],
            "oracle_ids": list(question.oracle_ids),
            "oracle_in_context": enough,
            "gold": list(taught.gold),
            "choices": [],
            "source": question.source,
            "source_row": question.row,
            "facts": list(question.facts),
            "sentences": as_texts(_shown_sentences(documents, context)) if question.facts else [],
            "synthetic": question.synthetic,
        }

    def _with_oracle(self, ranked: RankedQuestion) -> bool:
        return seeded_share(self.seed, "oracle", ranked.question.id) < self.task.oracle_share

    def _later(self, place: int, group: Sequence[RankedQuestion]) -> bool:
        """Return whether a document is later than a question of the group."""
        times = [ranked.question.time for ranked in group if ranked.question.time is not None]
        since = self.document(place).time if times else None
        return since is not None and since > min(times)

    def _usable(self, group: Sequence[RankedQuestion]) -> Iterator[int]:
        """Yield the places that may be distractors, in ranking order.

        Held-out documents, the right documents, their copies, and documents later than the question are left
        out.
        """
        right = {place for ranked in group for place in ranked.oracles}
        # Digests find equal texts without comparing words; `copies` finds those that are nearly equal.
        same = {self.content(place) for place in right}
        copies = CopyTest((self._text(place) for place in sorted(right)), self.near_duplicates)
        rankings = [ranked.fused for ranked in group]
        # The rankings of the group are interleaved, so that each question gets distractors of its own.
        for place in rankings[0] if len(rankings) == 1 else merged(rankings):
            barred = place in right or self.held_out(place) or self.content(place) in same
            # The cheap tests first: `copies` makes the shingles of a whole text.
            if not barred and not self._later(place, group) and not copies(self._text(place)):
                yield place

    def _text(self, place: int) -> str:
        document = self.document(place)
        return titled(document.title, document.text)

    def _fitted(
        self,
        chosen: Sequence[int],
        group: Sequence[RankedQuestion],
        wanted: Sequence[int],
        report: TaskReport,
    ) -> dict[int, str]:
        """Return, by place, the texts of the documents within the budget."""
        documents = [self.document(place) for place in chosen]
        texts = [document.text for document in documents]
        if self.task.max_context_tokens is None:
            return dict(zip(chosen, texts, strict=True))
        # Numbers in a prompt are not known before it is cut; two digits are the usual length.
        titles = [self.count(templates.document_line(10, document.title, "")) + 1 for document in documents]

        def keep(text: str) -> str | None:
            """Return the sentence that must stay, or None if the questions need different sentences."""
            found = {
                answer_styles.supporting_sentence([text], ranked.question.answers, ranked.question.text)
                for ranked in group
                if any(self.document(place).text == text for place in ranked.oracles)
            }
            return next(iter(found)) if len(found) == 1 else None

        protected = [i for i, place in enumerate(chosen) if place in wanted]
        fitted = fit(texts, self.task.max_context_tokens, self.count, protected, keep, titles)
        report.note(group[0].split, "context_shortened", fitted.shortened)
        report.note(group[0].split, "context_over_budget", fitted.over)
        return {place: text for place, text in zip(chosen, fitted.texts, strict=True) if text is not None}
