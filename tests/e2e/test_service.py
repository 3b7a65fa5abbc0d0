"""The web service of the examples, asked by many at a time while the champion changes."""

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

import refit
from refit.errors import TrainingError
from refit.registry.versions import move_alias
from refit.store.store import Store

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
SERVE = """
import sys, uvicorn, service
service.MODEL, service.SECONDS_BETWEEN_LOOKS = "model@champion", 0.2
uvicorn.run(service.app, port=int(sys.argv[1]), log_level="warning")
"""
ROWS = {"x1": [-1.2, -0.9, -0.5, 2.3, 2.7, 0.4, 0.6], "x2": [3.1, 2.9, 2.6, -1.1, -1.5, 0.5, 0.4]}


def find_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_every_answer_is_of_the_version_that_it_names_while_the_champion_changes():
    store = Store("refit-store")
    for seed in (0, 1):
        refit.train({"seed": seed}, report=lambda _: None)
    expected = {f"model@v{number}": refit.load_model(f"model@v{number}").predict(ROWS).tolist() for number in (1, 2)}
    move_alias(store, "model", 1, expected=None, why="test")
    port = find_port()
    environment = {**os.environ, "PYTHONPATH": ":".join([str(EXAMPLES), *filter(None, sys.path)])}
    with (
        subprocess.Popen([sys.executable, "-c", SERVE, str(port)], env=environment) as service,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        try:
            await_service(client)

            def ask(_: int) -> dict:
                return client.post("/predict", json=ROWS).raise_for_status().json()

            with ThreadPoolExecutor(8) as threads:
                answers = list(threads.map(ask, range(100)))
                move_alias(store, "model", 2, expected=1, why="test")
                give_up_at = time.monotonic() + 60
                while answers[-1]["model"] != "model@v2" and time.monotonic() < give_up_at:
                    answers += threads.map(ask, range(20))
            refused = client.post("/predict", json={"x1": [1.0]})
        finally:
            service.send_signal(signal.SIGINT)
    assert {answer["model"] for answer in answers} == expected.keys()
    assert all(answer["classes"] == expected[answer["model"]] for answer in answers)
    assert refused.status_code == 422
    assert "x2" in refused.json()["detail"]


def await_service(client: httpx.Client) -> None:
    give_up_at = time.monotonic() + 60
    while True:
        try:
            client.get("/docs").raise_for_status()
        except httpx.TransportError as error:
            if time.monotonic() > give_up_at:
                raise TrainingError("the service does not start") from error
            time.sleep(0.1)
        else:
            return
