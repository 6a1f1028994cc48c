"""A setting whose choices are the names of a registry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema


@dataclass(frozen=True)
class OneOf:
    """Restrict a text field to `names`: `Annotated[str, OneOf(("a", "b"))]`.

    It validates as `Literal["a", "b"]` does, with the same error message and the same `enum` in the JSON
    schema, from which the web form makes its choices. `Literal` itself cannot take names that are known only
    at run time.
    """

    names: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return the schema of a literal."""
        return core_schema.literal_schema(list(self.names))
