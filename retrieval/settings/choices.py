"""A text setting whose choices are the names in a registry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import GetCoreSchemaHandler


@dataclass(frozen=True)
class OneOf:
    """An annotation that restricts a text field to `names`: `Annotated[str, OneOf(("a", "b"))]`.

    The field then has the checks, the error message and the JSON schema (an `enum`, from which the web form
    makes its choices) of `Literal["a", "b"]`. A type checker does not accept a `Literal` of names that
    a table holds, so the annotation is `str`.
    """

    names: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        """Return the schema of the `Literal`. Pydantic calls this method."""
        # A `Literal` of a tuple made at run time is valid Python; only type checkers refuse it.
        return handler.generate_schema(Literal[self.names])
