"""The layouts of documents with questions, one row for each: the fields that identify it, and its reader.

To add a layout, write `retrieval/readers/documents/<name>.py` with the functions `read_documents` and
`read_questions` (:class:`retrieval.readers.documents.documents.LayoutReader`) and add its row at the end of
`DOCUMENT_LAYOUTS`. The configuration, the check of its values and the form know the layout from that row.

Nothing here imports a reader: `jora plan` loads this table, and the readers need parsers that it does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from retrieval.settings.choices import OneOf


@dataclass(frozen=True)
class DocumentLayout:
    """A layout: how it is identified, and which module reads its files.

    Attributes:
        module: dotted name of the module that reads the layout.
        told_by: sets of fields. A first row that has all fields of one set is in this layout.
        instructions: whether a row is an instruction with its answer, which is taught verbatim and without
            retrieval. Such a layout has no documents.
    """

    module: str
    told_by: tuple[frozenset[str], ...] = ()
    instructions: bool = False


def _sets(*fields: str) -> tuple[frozenset[str], ...]:
    """Return sets of fields. Each argument has the names of one set with spaces between them."""
    return tuple(frozenset(names.split()) for names in fields)


#: Rows that no other layout claims.
DEFAULT_LAYOUT = "documents"
#: Instructions that no other layout claims.
INSTRUCTION_LAYOUT = "alpaca"
_PASSAGES = "retrieval.readers.documents.passages"
#: The last row is checked first: a new layout with fields of its own is found before the general ones.
DOCUMENT_LAYOUTS: dict[str, DocumentLayout] = {
    DEFAULT_LAYOUT: DocumentLayout("retrieval.readers.documents.plain_rows"),
    # The nested form has `data` or `paragraphs`; a flat row of a data set hub has the three fields together.
    "squad": DocumentLayout(
        "retrieval.readers.documents.squad", _sets("data", "paragraphs", "context question answers")
    ),
    # The test file has no supporting facts; its reader says so.
    "hotpotqa": DocumentLayout(
        "retrieval.readers.documents.hotpotqa", _sets("supporting_facts", "_id question context")
    ),
    # A data set of passages alone, so it comes before the layouts whose rows also have `text`.
    "beir": DocumentLayout(f"{_PASSAGES}.beir", _sets("_id text")),
    "dpr": DocumentLayout(f"{_PASSAGES}.dpr", _sets("positive_ctxs")),
    "ms_marco": DocumentLayout(f"{_PASSAGES}.ms_marco", _sets("query passages")),
    # Reading for the layout ends at `paragraphs`, so only what comes before it tells the layout from SQuAD's.
    "musique": DocumentLayout(f"{_PASSAGES}.musique", _sets("id paragraphs")),
    "natural_questions": DocumentLayout(f"{_PASSAGES}.natural_questions", _sets("long_answer_candidates")),
    "chat": DocumentLayout(
        "retrieval.readers.documents.chats",
        _sets("messages", "conversations", "prompt completion", "prompt response"),
        instructions=True,
    ),
    INSTRUCTION_LAYOUT: DocumentLayout(
        "retrieval.readers.documents.alpaca", _sets("instruction"), instructions=True
    ),
    # RAFT's rows also have `instruction`, as Alpaca's do, so this row comes after that one.
    "raft": DocumentLayout("retrieval.readers.documents.raft", _sets("oracle_context", "cot_answer")),
}
#: Files that are one document each. Their names identify them, and the configured layout has no effect.
TEXT_FILES = DocumentLayout("retrieval.readers.documents.text_files")

_KINDS = "retrieval.readers.documents.kinds"
#: Source code is read as it is, with its lines.
CODE_SUFFIXES = (
    ".c", ".cc", ".cpp", ".cs", ".css", ".go", ".h", ".hpp", ".java", ".jl", ".js", ".jsx", ".kt", ".lua",
    ".php", ".pl", ".py", ".r", ".rb", ".rs", ".scala", ".sh", ".sql", ".swift", ".ts", ".tsx",
)  # fmt: skip
#: The module that reads each ending, in small letters. To add a kind of file, write a module with
#: `read_file` (:class:`retrieval.readers.documents.kinds.kind_reader.KindReader`) and add its ending here.
TEXT_KINDS: dict[str, str] = {
    **dict.fromkeys((".txt", ".md", ".markdown", ".rst", *CODE_SUFFIXES), f"{_KINDS}.plain"),
    ".pdf": f"{_KINDS}.pdf",
    **dict.fromkeys((".html", ".htm", ".xhtml"), f"{_KINDS}.html"),
    ".docx": f"{_KINDS}.docx",
    ".epub": f"{_KINDS}.epub",
}
#: Endings of files that are one document each.
TEXT_SUFFIXES = tuple(TEXT_KINDS)

#: The modules that read tables with questions.
TABLE_FORMATS: dict[str, str] = {
    "wikitables": "retrieval.readers.tables.wikitables",
    "rows": "retrieval.readers.tables.table_rows",
}
TableFormatName = Annotated[str, OneOf(("auto", *TABLE_FORMATS, "columns"))]
DocumentLayoutName = Annotated[str, OneOf(("auto", *DOCUMENT_LAYOUTS))]
