"""Cases of corpora and configurations that users of like tools brought."""

from __future__ import annotations

from pathlib import Path

import pytest

from .shared_cases import LIMIT_S, names, run_case


@pytest.mark.timeout(LIMIT_S + 60)
@pytest.mark.parametrize("name", names("CDEGHI"))
def test_case(name: str, shared: Path) -> None:
    run_case(name)
