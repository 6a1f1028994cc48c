"""Check finished records for leaks of the answer and for texts that are later than the question.

The readers and tasks remove quotelinks, quoted lines and labels. This module finds those that remain in the
text of a record. Such a record is dropped and counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from retrieval.guards.splits import has_link
from retrieval.text.words import tokenize, unspaced_share

QUOTELINK = "leak_quotelink"
QUOTED_PARENT = "leak_quoted_parent"
ANSWER_LABEL = "leak_answer_label"
LATER_CONTEXT = "leak_context_later_than_question"
FALSE_QUOTE = "leak_quote_not_in_context"
LEAKS = (QUOTELINK, QUOTED_PARENT, ANSWER_LABEL, LATER_CONTEXT, FALSE_QUOTE)

#: A comment quotes its parent if it repeats this many words of it in a row, or the whole parent if that has
#: at least `WHOLE_PARENT_WORDS` (a shorter one, such as "thank you", is repeated by chance).
QUOTE_WORDS = 12
WHOLE_PARENT_WORDS = 6


def quotes(comment: str, parent: str) -> bool:
    """Return whether a comment repeats its whole parent (six or more words) or twelve words in a row."""
    said, words = tokenize(comment), tokenize(parent)
    # Of scripts without blanks, a word has about two of the characters that are counted here.
    scale = 2 if unspaced_share(words) > 0.5 else 1
    width = min(QUOTE_WORDS * scale, len(words))
    if width < WHOLE_PARENT_WORDS * scale or len(said) < width:
        return False
    # A set of runs makes the search linear in the length of both texts.
    runs = {tuple(said[i : i + width]) for i in range(len(said) - width + 1)}
    return any(tuple(words[i : i + width]) in runs for i in range(len(words) - width + 1))


def thread_leaks(
    record: dict[str, Any], comment: str, parents: Iterable[str], *, links: bool, labels: Sequence[str]
) -> list[str]:
    """Find parts of a record that reveal which post its comment answers.

    Args:
        record: the finished record.
        comment: text of the comment.
        parents: texts of the posts that the comment answers.
        links: whether `>>123` is a quotelink in this kind of corpus.
        labels: labels of the right posts in the prompt.

    Returns:
        The names of the leaks, as in `LEAKS`.
    """
    found = []
    if links and has_link(record["input"]):
        found.append(QUOTELINK)
    if any(quotes(comment, parent) for parent in parents):
        found.append(QUOTED_PARENT)
    if any(names(comment, label) for label in labels):
        found.append(ANSWER_LABEL)
    return found


def names(comment: str, label: str) -> bool:
    """Return whether a comment contains the whole label of a post, such as `#3 Marta`."""
    at = comment.find(label)
    while at >= 0:
        end = at + len(label)
        # `#3 Ann` inside `#3 Anna` names another post.
        if (at == 0 or not comment[at - 1].isalnum()) and (end == len(comment) or not comment[end].isalnum()):
            return True
        at = comment.find(label, at + 1)
    return False


def later_contexts(question_time: float | None, times: Iterable[float | None]) -> int:
    """Return the number of context texts that are later than the question.

    A text with an unknown time does not count as later.
    """
    if question_time is None:
        return 0
    return sum(time is not None and time > question_time for time in times)
