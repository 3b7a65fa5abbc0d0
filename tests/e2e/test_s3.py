"""A store on S3, served by moto: what one machine has done, another does not do again."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import botocore.exceptions
import pytest

pytestmark = pytest.mark.slow

REFIT = Path(sys.executable).with_name("refit")
URL = "s3://refit-tests/store"


@pytest.fixture
def environment(prefect_home) -> Iterator[dict[str, str]]:
    """The environment of commands that use the S3 server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    credentials = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    endpoint = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "REFIT_STORE__URL": URL}
    command = [Path(sys.executable).with_name("moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = boto3.client(
        "s3",
        endpoint_url=endpoint["AWS_ENDPOINT_URL"],
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    )
    try:
        for _ in range(100):
            try:
                client.create_bucket(Bucket="refit-tests")
                break
            except botocore.exceptions.EndpointConnectionError:
                time.sleep(0.2)
        yield {**os.environ, **credentials, **endpoint, "PREFECT_HOME": prefect_home}
    finally:
        client.close()
        server.terminate()
        server.wait()


def test_two_machines_that_share_a_bucket_share_what_is_done(environment, tmp_path):
    results = []
    for machine in ("one", "other"):
        folder = tmp_path / machine
        folder.mkdir()
        command = [REFIT, "train", "--json", "--training.num_epochs", "4"]
        finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
        results.append((json.loads(finished.stdout), finished.stderr))
    (first, _), (second, said) = results
    assert first["is_new"]
    assert not second["is_new"]
    assert "epochs 1 to 4 of 4: done before" in said
    assert first["path"] == second["path"] == f"{URL}/models/model/v1"
    script = f"import refit; print(refit.load_model('{first['path']}').predict({{'x1': [-1.2, 2.7], 'x2': [3.1, -1.5]}}).tolist())"
    predicted = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert predicted.stdout == "[0, 1]\n"
    shown = subprocess.run([REFIT, "models"], env=environment, capture_output=True, text=True, check=True)
    assert "model@v1" in shown.stdout


MOVE = f"""
from refit.errors import ConflictError
from refit.registry.ledger import append_entry, load_ledger
from refit.registry.versions import add_version, move_alias, read_alias, rollback
from refit.store.store import Store
store = Store("{URL}")
print(store.create("a/file", b"first"), store.create("a/file", b"second"), store.read("a/file"))
for _ in range(2):
    add_version(store, "a", {{"model.pt": b"first"}}, {{"files": {{}}}})
print(store.publish("models/a/v2", {{"version.json": b"other"}}), store.read("models/a/v2/model.pt"))
move_alias(store, "a", 1, expected=None, why="the first")
move_alias(store, "a", 2, expected=1, why="it is better")
for act in (
    lambda: append_entry(store, "a", action="keep", why="no better", expected_number=2),
    lambda: move_alias(store, "a", 1, expected=1, why="it is better"),
):
    try:
        act()
    except ConflictError as error:
        print(error)
store.write("models/a/aliases/champion.json", b"damaged")
print(read_alias(store, "a"), store.read("models/a/aliases/champion.json"))
print(rollback(store, "a", "it is slow").after, [entry.action for entry in load_ledger(store, "a")])
"""


def test_aliases_move_by_conditional_writes(environment):
    finished = subprocess.run([sys.executable, "-c", MOVE], env=environment, capture_output=True, text=True, check=True)
    created, published, appended, moved, read, rolled_back = finished.stdout.splitlines()
    assert created == "True False b'first'"
    assert published == "False b'first'"
    assert appended.startswith(f"{URL}/models/a/ledger/000002.json: expected to write this entry, found one by another process")
    assert moved.startswith("a@champion: expected v1, found v2, by ")
    assert read == """2 b'{"version":2,"entry":2}'"""
    assert rolled_back == "1 ['promote', 'promote', 'rollback']"
