"""Read the rows of any corpus through a mapping of columns, and propose a mapping for a file.

A source of a mapping is the name of a column, a path into a JSON value (`user.name`, `tags.0`), or a Jinja
expression (`{{ channel }}-{{ n }}`), which runs in a sandbox without loops.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.readers.files.column_names import LIKELY_NAMES, NEEDED
from retrieval.readers.files.tables import Contents, Row, any_rows
from retrieval.settings.columns import Columns

_EXPRESSION = "{{"
_LONGEST = 1 << 22  # characters that an expression may give
#: Names under which a JSON object holds its list of rows.
_LISTS = (
    "messages",
    "posts",
    "comments",
    "items",
    "rows",
    "records",
    "results",
    "entries",
    "hits",
    "data",
    "",
)
_NOWHERE = object()
# Methods and filters that make long texts out of short ones.
_LENGTHENING = frozenset({"format", "format_map", "center", "ljust", "rjust", "zfill", "expandtabs"})


def mapped_rows(file: SourceFile, columns: Columns, field: str, required: Sequence[str]) -> Iterator[Row]:
    """Read (place for errors, 1-based row, value by field of the mapping) of each row of a file.

    A row has an id of its file and number if the mapping names none.

    Args:
        file: the file: JSON lines, JSON, CSV, TSV, XLSX, Parquet or Arrow.
        columns: the mapping.
        field: the setting that holds the mapping, for errors.
        required: fields that must have a value in each row.

    Raises:
        InputError: the file is broken, a row lacks a required value, or no row has a mapped column.
    """
    path = file.path
    # Without its last ending. By the name below the source, because the parts of a data set may be named
    # alike.
    stem = file.name.removesuffix(PurePosixPath(file.name).suffix)
    sources = {name: _compiled(source, f"{field}.{name}") for name, source in columns.fields.items()}
    unseen = dict(columns.fields)
    names: dict[str, None] = {}
    for where, number, row in _rows(path, columns.delimiter, columns.sheet):
        if unseen:
            names.update(dict.fromkeys(_paths(row)))
        mapped: dict[str, Any] = {} if "id" in sources else {"id": f"{stem}-{number}"}
        for name, source in sources.items():
            value = source(row, where)
            if value is _NOWHERE:
                value = None
            else:
                unseen.pop(name, None)
            mapped[name] = value
        for name in required:
            if mapped[name] is None or mapped[name] == "":
                raise InputError(
                    f"{where}: {columns.fields[name]} is empty, but {field}.{name} needs it"
                    f"{_nearest(columns.fields[name], tuple(_paths(row)))}"
                )
        yield where, number, mapped
    for name, source in unseen.items():
        if names:
            raise InputError(
                f"{path}: {field}.{name} is {source!r}, which is in no row{_nearest(source, tuple(names))}"
            )


def unmapped(file: SourceFile, fields: Sequence[str]) -> str:
    """Return the end of an error about fields that a row lacks: the columns that the mapping names for them.

    Raises:
        InputError: the file is broken.
    """
    columns = file.columns
    assert columns is not None
    names = column_names(file.path, columns=columns)
    said = []
    for field in fields:
        source = columns.fields.get(field)
        if source is None:
            said.append(f"{file.columns_field}.{field} is not set; name the column")
        elif source in names or _EXPRESSION in source:
            said.append(f"{file.columns_field}.{field}: {source!r} is empty there; fill it in")
        else:
            said.append(
                f"{file.columns_field}.{field}: there is no column {source!r}{_nearest(source, names)}"
            )
    return "; ".join(said)


def _rows(path: Path, delimiter: str | None = None, sheet: str | None = None) -> Iterator[Row]:
    """Read the rows of a file of any kind. A row that is no object has one field, `value`."""
    contents = Contents(keys=_LISTS, delimiter=delimiter, sheet=sheet)
    for where, number, row in any_rows(path, contents):
        yield where, number, row if isinstance(row, dict) else {"value": row}


def _nearest(source: str, names: Sequence[str]) -> str:
    if source in names:
        return ""
    # Names that differ in capitals are the nearest.
    near = [name for name in names if name.casefold() == source.casefold()][:1]
    near = near or difflib.get_close_matches(source, names, 1)
    listed = ", ".join(names)[:200]
    return f"; did you mean {near[0]}? The file has {listed}" if near else f"; the file has {listed}"


def _paths(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of a row's fields, and the paths of those one level deeper."""
    for name, value in row.items():
        yield name
        if isinstance(value, dict):
            yield from (f"{name}.{inner}" for inner in value)


Source = Callable[[Mapping[str, Any], str], Any]


def _compiled(source: str, field: str) -> Source:
    """Return the function that finds a source in a row. The source is `field` of the mapping, for errors.

    Raises:
        InputError: the expression is no Jinja.
    """
    if "{%" in source:
        raise InputError(
            f"{field}: statements such as {{% for %}} are not allowed; write {{{{ expression }}}}"
        )
    if _EXPRESSION in source:
        return _expression(source, field)
    steps = source.split(".")

    def find(row: Mapping[str, Any], where: str) -> Any:
        # A column's own name may hold a full stop.
        if source in row:
            return row[source]
        value: Any = row
        for step in steps:
            if isinstance(value, Mapping) and step in value:
                value = value[step]
            elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
                value = value[int(step)]
            else:
                # Below a null there is nothing, but the path is right.
                return None if value is None else _NOWHERE
        return value

    return find


def _expression(source: str, field: str) -> Source:
    from jinja2 import TemplateError

    try:
        template = _environment().from_string(source)
    except TemplateError as error:
        raise InputError(f"{field}: {source!r:.80} is no Jinja expression ({error})") from error

    def find(row: Mapping[str, Any], where: str) -> Any:
        try:
            found = template.render({**row, "row": row})
        except InputError as error:
            raise InputError(f"{where}: {field}: {error}") from error
        except Exception as error:  # a function of the template gives any exception there is
            raise InputError(f"{where}: {field}: {source!r:.80} fails ({error!s:.120})") from error
        if len(found) > _LONGEST:
            raise InputError(f"{where}: {field}: gives more than {_LONGEST} characters; shorten it")
        return found.strip()

    return find


@cache
def _environment() -> Any:
    from jinja2 import ChainableUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Environment(ImmutableSandboxedEnvironment):
        """A sandbox in which no operator and no function makes a long text out of a short one."""

        intercepted_binops = frozenset({"*", "**", "%"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            """Compute a product of numbers, and refuse one of texts, and powers and formats."""
            if operator == "*" and isinstance(left, (int, float)) and isinstance(right, (int, float)):
                return left * right
            if operator == "%" and isinstance(left, (int, float)):
                return left % right
            raise InputError(f"{operator} of these values is not allowed in an expression")

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            """Return whether an attribute may be used."""
            return attr not in _LENGTHENING and super().is_safe_attribute(obj, attr, value)

    environment = Environment(undefined=ChainableUndefined, autoescape=False)
    for name in ("format", "center", "indent", "pprint"):
        environment.filters.pop(name, None)
    environment.globals.clear()
    return environment


def guess(names: Sequence[str], kind: str) -> dict[str, str]:
    """Return the likely column of each field, as far as the names tell it.

    Args:
        names: columns and paths of the file.
        kind: a kind of `LIKELY_NAMES`.
    """
    plain: dict[str, str] = {}
    for name in names:
        # The rows of a data set's viewer are objects `row`.
        plain.setdefault(re.sub(r"[^a-z0-9]", "", name.lower().removeprefix("row.")), name)
    # `user.name` is also found as what its last part says, after all whole names.
    for name in names:
        head, _, last = name.rpartition(".")
        if head and last.lower() in ("name", "login", "username", "displayname", "id"):
            plain.setdefault(re.sub(r"[^a-z0-9]", "", head.lower()), name)
    found: dict[str, str] = {}
    for field, likely in LIKELY_NAMES[kind].items():
        taken = set(found.values())
        match = next((plain[one] for one in likely.split() if one in plain and plain[one] not in taken), None)
        if match is not None:
            found[field] = match
    return found


def kind_of(names: Sequence[str]) -> str:
    """Return what a table most likely holds: "threads", "questions" or "documents"."""
    if {"question", "answers"} <= guess(names, "questions").keys():
        return "questions"
    return "threads" if "parent" in guess(names, "threads") else "documents"


def column_names(path: Path, most: int = 20, columns: Columns | None = None) -> list[str]:
    """Return the columns of a file and the paths one level deeper.

    Args:
        path: the file.
        most: number of rows to look at, from the first.
        columns: the mapping, which names the delimiter and the sheet.

    Raises:
        InputError: the file is broken.
    """
    found: dict[str, None] = {}
    dialect = (columns.delimiter, columns.sheet) if columns is not None else ()
    for _, _, row in islice(_rows(path, *dialect), most):
        # An object is named by its parts.
        found.update(dict.fromkeys(path for path in _paths(row) if not isinstance(row.get(path), dict)))
    return list(found)


def first_rows(path: Path, most: int, columns: Columns | None = None) -> list[dict[str, Any]]:
    """Return the first rows of a file, as they are or as a mapping reads them.

    Args:
        path: the file.
        most: number of rows.
        columns: the mapping; None for the rows as they are.

    Raises:
        InputError: the file is broken.
    """
    file = SourceFile(path, path.name)
    rows = _rows(path) if columns is None else mapped_rows(file, columns, "columns", ())
    return [row for _, _, row in islice(rows, most)]


def proposal(path: Path, kind: str) -> str:
    """Return the likely mapping of a file as YAML on one line; unknown columns are `NAME_OF_COLUMN`.

    Args:
        path: the file.
        kind: a kind of `LIKELY_NAMES`.

    Raises:
        InputError: the file is broken.
    """
    found = guess(column_names(path), kind)
    return written(dict.fromkeys(NEEDED[kind], "NAME_OF_COLUMN") | found)


def written(mapping: Mapping[str, str]) -> str:
    """Return a mapping as YAML on one line."""
    return "{" + ", ".join(f"{name}: {_yaml(source)}" for name, source in mapping.items()) + "}"


def advice(path: Path, settings: Mapping[str, str]) -> str:
    """Return the end of an error about missing columns: the mappings that would name them.

    Args:
        path: the file.
        settings: the setting of the mapping by kind of `LIKELY_NAMES`.
    """
    try:
        written = " and ".join(f"{setting}: {proposal(path, kind)}" for kind, setting in settings.items())
    except InputError:  # the file itself is broken, which its reader says
        return ""
    return f"; or name the columns by {written}"


def _yaml(text: str) -> str:
    plain = re.fullmatch(r"[A-Za-z_][\w.\-]*", text) and text.lower() not in (
        "no",
        "yes",
        "on",
        "off",
        "null",
        "true",
        "false",
        "n",
        "y",
    )
    return text if plain else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
