"""Servers behind what asks for a header, as a company's gate does, and what is no Prefect server at all."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_CSRF_SUPPORT_ENABLED,
    PREFECT_CLIENT_CUSTOM_HEADERS,
    temporary_settings,
)

from refit.server.api import ServerError, await_server, connected, forgets_soon


class Gate(BaseHTTPRequestHandler):
    """Lets nobody in without the word, and knows of no flow runs, or is busy; to those who ask for a page it gives one."""

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.send_response((503 if self.path.startswith("/busy") else 200) if self.headers["X-Word"] == "sesame" else 403)
        self.end_headers()
        self.wfile.write(b"<html>" if self.path.startswith("/page") else b"[]")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Gate) as server:
        Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_server_is_asked_with_the_headers_that_prefects_client_sends_and_may_refuse(url):
    with temporary_settings({PREFECT_API_URL: f"{url}/api", PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False}):
        with pytest.raises(ServerError, match=rf"at {url}/api, found Client error '403 Forbidden'.*; check the address, and PREF"):
            await_server(60)
        with temporary_settings({PREFECT_CLIENT_CUSTOM_HEADERS: {"X-Word": "sesame"}}):
            await_server(0)
            with temporary_settings({PREFECT_API_URL: f"{url}/busy"}):
                await_server(0)


def test_a_server_of_pages_is_none_of_prefects(url):
    changes = {PREFECT_API_URL: f"{url}/page", PREFECT_CLIENT_CUSTOM_HEADERS: {"X-Word": "sesame"}}
    with (
        temporary_settings({**changes, PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False}),
        pytest.raises(ServerError, match=rf"expected a Prefect server at {url}/page, found Expecting value"),
    ):
        await_server(0)


@pytest.mark.usefixtures("prefect_server")
def test_a_server_as_prefect_starts_it_forgets_soon():
    with connected() as client:
        assert forgets_soon(client)


@pytest.mark.slow
def test_who_waits_for_a_server_that_still_starts_is_told(capsys):
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}), pytest.raises(ServerError, match="start it"):
        await_server(5, seconds_to_say_so=0.1)
    assert capsys.readouterr().err == "waiting up to 5 seconds for a Prefect server at http://127.0.0.1:9/api\n"
