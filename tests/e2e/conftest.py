"""A server with workers for the tests of one file, and a home for Prefect for one test."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from threading import Thread

import pytest
from servers import Site, make_home


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, prefect_database: Path) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"), prefect_database)
    try:
        yield site
    finally:
        site.cut_power()
        for name in ("server", "worker"):  # shown where a test failed
            print(name, site.log(name).read_text(errors="replace")[-8000:] if site.log(name).exists() else "")


@pytest.fixture
def prefect_home(tmp_path: Path, prefect_database: Path) -> str:
    return make_home(tmp_path, prefect_database)


@pytest.fixture
def mailbox() -> Iterator[tuple[str, Queue]]:
    """Where a webhook can send messages, and those that came."""
    messages = Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            messages.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", messages
        server.shutdown()
