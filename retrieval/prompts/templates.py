"""The text formats of all examples. The tiny base model is pretrained on these line formats.

Every `input` begins with the context and ends with the paragraph that varies (comment or question), so that
the examples of one context share a token prefix, which training computes once.
"""

from __future__ import annotations

from collections.abc import Sequence

from retrieval.text.labels import NO_TEXT, titled

THREADS_INSTRUCTION = "Read the posts and say which post the comment replies to."
CHANNEL_INSTRUCTION = "Write the comment that replies to the post."
TABLES_INSTRUCTION = "Answer the question from the table."
QA_INSTRUCTION = "Answer the question from the documents."
#: Additions to an instruction, and the answers that abstain, by task.
QUOTE_FIRST = " First quote the sentence that holds the answer."
MAY_ABSTAIN = ' If it is not there, answer "{abstention}".'
NO_POST = "None of these posts"
NO_TABLE = "Not in the tables"
NO_DOCUMENT = "Not in the documents"
ANSWER_SEPARATOR = ", "
CELL_SEPARATOR = " | "


def instruction(task: str, abstention: str | None = None, quote: bool = False) -> str:
    """Return the instruction of a task, which is the same in all records of the task.

    Args:
        task: the sentence that states the task.
        abstention: the answer that is allowed if the context lacks the right one; None: no such answer.
        quote: whether the answer begins with a quotation.
    """
    quoting = QUOTE_FIRST if quote else ""
    return task + quoting + (MAY_ABSTAIN.format(abstention=abstention) if abstention else "")


def post_label(author: str, number: int) -> str:
    """Return the label of post `number`, such as `#3 Marta`, which is also the answer that names the post.

    Posts are counted from 1 in the prompt.
    """
    # The number first: it alone names the post, and a person may have several posts in the prompt.
    return f"#{number} {author}"


def threads_input(posts: Sequence[tuple[str, str]], author: str, comment: str) -> str:
    """Return the prompt body of a thread example.

    A post's label stands below its text, because causal attention then lets the label depend on the whole
    post. To name a post, the answer needs to attend to the labels only.

    Args:
        posts: (label, text) in thread order; see `post_label`.
        author: the comment's author.
        comment: the comment's text.
    """
    signed = [f"{text or NO_TEXT}\n{label}" for label, text in posts]
    return "\n\n".join([*signed, f"Comment by {author}: {comment}"])


def channel_input(post_author: str, post: str, author: str) -> str:
    """Return the prompt body of a channel example: a post, after which the model writes a comment.

    Args:
        post_author: the post's author.
        post: the post's text.
        author: the comment's author.
    """
    return f"{post_author}: {post or NO_TEXT}\n\nComment by {author}:"


def table_block(header: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> str:
    """Return a table as text: an optional title line, the header line, then one line for each row.

    Args:
        header: the header's cells.
        rows: the rows' cells, as many as the header has.
        title: the title; "" for none.
    """
    lines = [f"Table: {title}"] if title else []
    lines.append(CELL_SEPARATOR.join(header))
    lines.extend(CELL_SEPARATOR.join(row) for row in rows)
    return "\n".join(lines)


def tables_input(blocks: Sequence[str], question: str) -> str:
    """Return the prompt body of a table example: the tables, separated by blank lines, then the question."""
    return "\n\n".join([*blocks, f"Question: {question}"])


def document_line(number: int, title: str, text: str) -> str:
    """Return a document as one line of a prompt: `[1] title. text`.

    Args:
        number: the document's number in the prompt, from 1.
        title: title of the document; "" for none.
        text: its text.
    """
    return f"[{number}] {titled(title, text)}"


def qa_input(documents: Sequence[tuple[str, str]], question: str) -> str:
    """Return the prompt body of a question over documents. Documents are (title, text) in prompt order."""
    return qa_prompt_of([titled(title, text) for title, text in documents], question)


def qa_prompt_of(shown: Sequence[str], question: str) -> str:
    """Return the prompt body of a question over documents that are given as a prompt shows them."""
    lines = "\n".join(f"[{number}] {text}" for number, text in enumerate(shown, start=1))
    return "\n\n".join([*([lines] if shown else []), f"Question: {question}"])


def documents_of(shown: str, count: int) -> list[str]:
    """Return the documents of a prompt body that `qa_input` made, as the prompt shows them.

    Where a document has a line that looks like the beginning of another one, the texts that may belong to
    either are in neither.

    Args:
        shown: the prompt body.
        count: number of its documents.
    """
    # The first document begins the prompt; a line break before it makes its mark like the others.
    body = "\n" + shown.rpartition("\n\nQuestion: ")[0]
    marks = [f"\n[{number}] " for number in range(1, count + 1)]
    starts = [0 if number == 0 else body.rfind(mark) for number, mark in enumerate(marks)]
    texts = []
    for mark, start, following in zip(marks, starts, [*marks, ""][1:], strict=True):
        end = body.find(following, start) if following else len(body)
        texts.append(body[start + len(mark) : end] if body.startswith(mark, start) and end > start else "")
    return texts


def thread_document(author: str, text: str) -> str:
    """Return the indexed text of a post: the author's name and the text as the model sees it."""
    return f"{author} {text}"
