"""The styles in which an answer is taught."""

from __future__ import annotations

from typing import Literal

Style = Literal["direct", "quote", "template"]
#: Documents may also have questions that come with a reasoned answer.
DocumentStyle = Literal["direct", "quote", "template", "reasoned"]
