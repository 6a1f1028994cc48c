"""Mappings of columns: which field of a row holds what. A field is a name, a path or a Jinja expression."""

from __future__ import annotations

from pydantic import Field, model_validator

from retrieval.settings.limits import SettingsModel

_FORMS = "a column, a path such as user.name, or a Jinja expression such as {{ user.id }}-{{ n }}"


class Columns(SettingsModel):
    """What all mappings share: how tables are split into cells."""

    delimiter: str | None = Field(
        default=None,
        min_length=1,
        max_length=1,
        title="Delimiter",
        description="Sign between the cells of a .csv file; empty: found from the first lines.",
    )
    sheet: str | None = Field(
        default=None, title="Sheet", description="Name of the sheet of an .xlsx file; empty: the first one."
    )

    @property
    def fields(self) -> dict[str, str]:
        """The mapping itself: source by field."""
        named = self.model_dump(exclude={"delimiter", "sheet"}, exclude_none=True)
        return {name: str(source) for name, source in named.items()}

    @model_validator(mode="after")
    def _sources_are_named(self) -> Columns:
        for name, source in self.fields.items():
            if not source.strip():
                raise ValueError(f"columns.{name} is empty: name a column, or leave the key out")
        return self


class ThreadColumns(Columns):
    """The columns of messages in any corpus."""

    id: str = Field(title="Id", description=f"The message's own id: {_FORMS}.")
    text: str = Field(title="Text", description="What the message says.")
    parent: str = Field(
        title="Parent", description="Id of the message that it answers; empty in a first one."
    )
    author: str | None = Field(default=None, title="Author", description="Name of who wrote it.")
    time: str | None = Field(
        default=None, title="Time", description="When: seconds or milliseconds since 1970, or a date."
    )
    thread: str | None = Field(
        default=None,
        title="Thread",
        description="Id of the conversation; without it, replies connect threads.",
    )


class DocumentColumns(Columns):
    """The columns of documents in any table."""

    id: str = Field(title="Id", description=f"The document's id: {_FORMS}.")
    text: str = Field(title="Text", description="The document.")
    title: str | None = Field(default=None, title="Title", description="Its title.")
    time: str | None = Field(default=None, title="Time", description="When the document came into being.")


class QuestionColumns(Columns):
    """The columns of questions in any table."""

    id: str | None = Field(
        default=None, title="Id", description=f"The question's id: {_FORMS}; empty: the number of its row."
    )
    question: str = Field(title="Question", description="The question.")
    answers: str = Field(title="Answers", description="The accepted answer, or a list of them.")
    document_id: str = Field(title="Document", description="Id of the document that holds the answer.")
    time: str | None = Field(default=None, title="Time", description="When it was asked.")


class TableColumns(Columns):
    """The columns of a corpus whose rows are whole tables."""

    id: str | None = Field(
        default=None,
        title="Id",
        description=f"The table's id: {_FORMS}; empty: a digest of its cells.",
    )
    cells: str = Field(
        title="Cells",
        description="The table: a list of rows (lists or objects), lists by column, or a text in JSON, "
        "Markdown or CSV.",
    )
    header: str | None = Field(
        default=None,
        title="Header",
        description="Names of its columns; empty: the first row of the cells, or the names of their fields.",
    )
    title: str | None = Field(default=None, title="Title", description="Its title.")


class TableQuestionColumns(Columns):
    """The columns of questions about tables."""

    id: str | None = Field(
        default=None, title="Id", description=f"The question's id: {_FORMS}; empty: the number of its row."
    )
    question: str = Field(title="Question", description="The question.")
    answers: str = Field(title="Answers", description="The accepted answer, or a list of them.")
    table_id: str | None = Field(
        default=None,
        title="Table",
        description="Id of the table, or name of its file; empty where the row brings its table.",
    )
