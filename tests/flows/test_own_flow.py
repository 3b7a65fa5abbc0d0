"""The example of a flow of one's own, run whole, beside the service that it tells."""

import importlib.util
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import polars as pl
import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]


@pytest.fixture
def nightly():
    spec = importlib.util.spec_from_file_location("own_flow", ROOT / "examples/own_flow.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.nightly


def test_a_night_of_six_steps_promotes_and_tells_the_service_and_a_bad_table_stops_it(nightly, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REFIT_TRAINING__EPOCHS_PER_TASK", "100")
    told = []

    class Service(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url, source = f"http://127.0.0.1:{server.server_port}/champion", str(ROOT / "examples/penguins.csv")
    try:
        assert nightly(url, source) == pl.read_parquet("scored.parquet").height == pl.read_csv(source).height
        assert [message["champion"] for message in told] == ["penguins@v1"]
        assert nightly(url, source) > 0, "nothing new, so nothing is told"
        assert len(told) == 1
        pl.read_csv(source, null_values="NA").head(20).write_csv("short.csv")
        with pytest.raises(ValueError, match="expected 100 rows or more with a species each, found 20"):
            nightly(url, "short.csv")
    finally:
        server.shutdown()
        server.server_close()
