"""Serve the HTML reports of stores on this machine: `http://127.0.0.1:PORT/STORE/reports/NAME.html`.

Only report pages are served, by names that a pattern allows, so no address reaches another file of the store.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HOST = "127.0.0.1"
_ADDRESS = re.compile(
    r"/(?P<store>[0-9a-f]{12})/(?P<page>report(-[\w.-]{1,99})?\.html|reports/[0-9a-f]{16}\.html)"
)
# A report needs neither scripts nor other hosts. Corpora hold markup of strangers.
HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def store_name(root: Path) -> str:
    """Return the name of a store in addresses, which does not tell where the store is."""
    return hashlib.sha256(str(root).encode()).hexdigest()[:12]


def report_page(address: str, stores: Iterable[Path]) -> Path | None:
    """Return the file of an address; None for an address that is no report of these stores.

    Args:
        address: path of the URL, as the browser sends it.
        stores: folders of the stores.
    """
    match = _ADDRESS.fullmatch(address.partition("?")[0])
    root = next((root for root in stores if match and store_name(root) == match["store"]), None)
    if root is None or match is None:
        return None
    page = root / match["page"]
    # A link could lead out of the store.
    return page if page.is_file() and page.resolve().is_relative_to(root.resolve()) else None


def index_page(address: str, stores: Iterable[Path]) -> bytes | None:
    """Return the page with the links to all reports; None if the address is not the beginning of one.

    Args:
        address: path of the URL, as the browser sends it.
        stores: folders of the stores.
    """
    names = {store_name(root): root for root in stores}
    wanted = address.partition("?")[0].strip("/")
    chosen = names if not wanted else {wanted: names[wanted]} if wanted in names else {}
    if not chosen:
        return None
    found = [
        (page.stat().st_mtime, f"/{name}/reports/{page.name}")
        for name, root in chosen.items()
        for page in (root / "reports").glob("*.html")
        if report_page(f"/{name}/reports/{page.name}", [root])
    ]
    items = "".join(
        f'<li><a href="{link}">{datetime.fromtimestamp(time):%Y-%m-%d %H:%M}</a></li>'
        for time, link in sorted(found, reverse=True)
    )
    body = f"<ul>{items}</ul>" if items else "<p>No report yet: a finished run writes one.</p>"
    return f"<!doctype html><title>JORA-RAFT: reports</title><h1>Reports</h1>{body}".encode()


@contextmanager
def report_server(stores: Iterable[Path], port: int, say: Callable[[str], None]) -> Iterator[dict[str, str]]:
    """Serve the reports of stores during the block; yield the address of each store.

    Args:
        stores: folders of the stores. They need not exist yet.
        port: port on this machine; another free one is taken, and said, if a program already uses it.
        say: called with each line for the user.
    """
    roots = list(dict.fromkeys(stores))

    class Handler(BaseHTTPRequestHandler):
        """Answers requests for report pages."""

        def do_GET(self) -> None:
            """Send a report page."""
            page = report_page(self.path, roots)
            content = index_page(self.path, roots) if page is None else page.read_bytes()
            if content is None:
                self.send_error(HTTPStatus.NOT_FOUND, "no such report", "A finished run writes its report.")
                return
            self.send_response(HTTPStatus.OK)
            for name, value in {**HEADERS, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            """Write nothing: the terminal belongs to the runs."""

    try:
        server = ThreadingHTTPServer((HOST, port), Handler)
    except OSError:
        server = ThreadingHTTPServer((HOST, 0), Handler)
        say(f"port {port} is taken, so reports are served on port {server.server_port}")
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        base = f"http://{HOST}:{server.server_port}"
        yield {str(root): f"{base}/{store_name(root)}" for root in roots}
    finally:
        server.shutdown()
        server.server_close()
