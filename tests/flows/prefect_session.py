"""A pytest plugin: one Prefect server for all tests that need one, on a database of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.orchestration.prefect_server import prefect_api, prepare_environment


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Prefect home of this session, so that no test touches the user's database, profiles or results."""
    home = tmp_path_factory.mktemp("prefect")
    wanted = {"PREFECT_HOME": str(home), "PREFECT_LOCAL_STORAGE_PATH": str(home / "storage")}
    before = {name: os.environ.get(name) for name in (*wanted, "PREFECT_API_URL")}
    os.environ.pop("PREFECT_API_URL", None)
    os.environ.update(wanted)
    prepare_environment()
    yield home
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.fixture(scope="session")
def prefect_url(prefect_home: Path) -> Iterator[str]:
    """The API address of the session's server, which this process and its children use."""
    from prefect.context import refresh_global_settings_context

    refresh_global_settings_context()  # Prefect may have been imported before its home was set
    with prefect_api(print) as url:
        yield url
