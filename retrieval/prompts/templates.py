"""The exact words around every example; the tiny base model is pretrained on these line formats.

Every `input` ends with the paragraph that varies (comment or question) and begins with the context, so that
the examples of one context share a token prefix.
"""

from __future__ import annotations

from collections.abc import Sequence

from retrieval.text.labels import NO_TEXT, titled

THREADS_INSTRUCTION = "Read the posts and say which post the comment replies to."
TABLES_INSTRUCTION = "Answer the question from the table."
QA_INSTRUCTION = "Answer the question from the documents."
#: What is added to an instruction, and what abstaining says, by task.
QUOTE_FIRST = " First quote the sentence that holds the answer."
MAY_ABSTAIN = ' If it is not there, answer "{abstention}".'
NO_POST = "None of these posts"
NO_TABLE = "Not in the tables"
NO_DOCUMENT = "Not in the documents"
ANSWER_SEPARATOR = ", "
CELL_SEPARATOR = " | "


def instruction(task: str, abstention: str | None = None, quote: bool = False) -> str:
    """A task's instruction, which is the same in all its records."""
    quoting = QUOTE_FIRST if quote else ""
    return task + quoting + (MAY_ABSTAIN.format(abstention=abstention) if abstention else "")


def post_label(author: str, number: int) -> str:
    """The answer that names post `number` (1-based within the prompt), such as `#3 Marta`."""
    return f"#{number} {author}"


def threads_input(posts: Sequence[tuple[str, str]], author: str, comment: str) -> str:
    """The prompt body of a thread example: `posts` are (author, text) in thread order.

    A post's label stands below its text, where causal attention lets it know the whole post: naming a post is
    then one look from the answer's place to the labels.
    """
    signed = [f"{text or NO_TEXT}\n{post_label(name, n)}" for n, (name, text) in enumerate(posts, start=1)]
    return "\n\n".join([*signed, f"Comment by {author}: {comment}"])


def table_block(header: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> str:
    """One table as text: an optional title line, the header line, then a line a row."""
    lines = [f"Table: {title}"] if title else []
    lines.append(CELL_SEPARATOR.join(header))
    lines.extend(CELL_SEPARATOR.join(row) for row in rows)
    return "\n".join(lines)


def tables_input(blocks: Sequence[str], question: str) -> str:
    """The prompt body of a table example: the tables apart by a blank line, the question last."""
    return "\n\n".join([*blocks, f"Question: {question}"])


def document_line(number: int, title: str, text: str) -> str:
    """One document as a line: `[1] title. text`."""
    return f"[{number}] {titled(title, text)}"


def qa_input(documents: Sequence[tuple[str, str]], question: str) -> str:
    """The prompt body of a question over documents: `documents` are (title, text) in prompt order."""
    lines = [document_line(n, title, text) for n, (title, text) in enumerate(documents, start=1)]
    return "\n".join(lines) + f"\n\nQuestion: {question}"


def thread_document(author: str, text: str) -> str:
    """What the indexes hold of a post: as the model sees it, the author's name included."""
    return f"{author} {text}"
