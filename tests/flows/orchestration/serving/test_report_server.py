"""The report server: reports are found, and nothing else of a store or of the machine."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from flows.orchestration.serving.report_server import HEADERS, report_page, report_server, store_name

NAME = "0123456789abcdef"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    (root / "reports").mkdir(parents=True)
    (root / "report.html").write_text("the newest")
    (root / "reports" / f"{NAME}.html").write_text("one of them")
    (root / "secret.html").write_text("secret")
    (tmp_path / "secret.html").write_text("secret")
    return root


def test_reports_are_served(store: Path) -> None:
    other = store.parent / "not-yet"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with report_server([store, other], 0, print) as addresses:
        base = addresses[str(store)]
        assert base.startswith("http://127.0.0.1:") and set(addresses) == {str(store), str(other)}
        with opener.open(f"{base}/reports/{NAME}.html") as answer:
            assert answer.read() == b"one of them"
            assert answer.headers["Content-Security-Policy"] == HEADERS["Content-Security-Policy"]
        with opener.open(f"{base}/report.html?again") as answer:
            assert answer.read() == b"the newest"
        for place in (base, base.rpartition("/")[0] + "/"):
            with opener.open(place) as answer:
                text = answer.read().decode()
            assert f"/reports/{NAME}.html" in text and "secret" not in text
        with opener.open(addresses[str(other)]) as answer:
            assert b"No report yet" in answer.read()
        for address in (f"{addresses[str(other)]}/report.html", f"{base}/secret.html"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                opener.open(address)


def test_no_other_file_is_reached(store: Path) -> None:
    name = store_name(store)
    assert report_page(f"/{name}/report.html", [store]) == store / "report.html"
    outside = store / "reports" / "fedcba9876543210.html"
    outside.symlink_to(store.parent / "secret.html")
    for address in (
        f"/{name}/secret.html",
        f"/{name}/reports/../secret.html",
        f"/{name}/../secret.html",
        f"/{name}/reports/%2e%2e/secret.html",
        f"//{name}/report.html",
        f"/{name}/reports/{NAME}.html/",
        f"/{name}/reports/{NAME}.html\n",
        f"/{'0' * 12}/report.html",
        f"/{name}/reports/{outside.name}",
        "/",
        "",
    ):
        assert report_page(address, [store]) is None, address


def test_a_port_in_use_is_replaced(store: Path) -> None:
    said: list[str] = []
    with report_server([store], 0, said.append) as first:
        port = urlsplit(first[str(store)]).port
        assert port is not None and not said
        with report_server([store], port, said.append) as second:
            new = urlsplit(second[str(store)]).port
            assert new != port and said == [f"port {port} is taken, so reports are served on port {new}"]
