"""Deployments on a real server with real workers: planned runs, two workers, a server that goes away, wrong parameters."""

import itertools
import json
import re
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from kill_campaign import REFIT
from servers import FINAL, PREFECT, ROOT, SELDOM, TIMEOUT_SECONDS, find_processes, wait_for

from refit.registry.versions import list_versions, load_part, read_alias, read_record
from refit.server.project import name_pool
from refit.store.store import Store

pytestmark = pytest.mark.slow

NETWORK = """
from torch import nn


def build(num_inputs, num_outputs):
    return nn.Sequential(nn.Linear(num_inputs, 32), nn.ReLU(), nn.Linear(32, num_outputs))
"""
MAKE_BLOCK = """
import sys

from prefect.blocks.notifications import CustomWebhookNotificationBlock

texts = {"subject": "{{subject}}", "body": "{{body}}"}
CustomWebhookNotificationBlock(name="team", url=sys.argv[1], json_data=texts).save("team")
"""
EVERY_THIRTY_SECONDS = "* * * * * */30"
EVERY_TWENTY_SECONDS = "* * * * * */20"
NOTEBOOK = """
import json
from pathlib import Path

import torch
from torch.utils.data import Dataset


class ToyDataset(Dataset):
    def __init__(self, X, y):
        self.features = X
        self.labels = y

    def __getitem__(self, index):
        one_x = self.features[index]
        one_y = self.labels[index]
        return one_x, one_y

    def __len__(self):
        return self.labels.shape[0]


class NeuralNetwork(torch.nn.Module):
    def __init__(self, num_inputs, num_outputs):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(num_inputs, 16), torch.nn.ReLU(), torch.nn.Linear(16, num_outputs))

    def forward(self, x):
        return self.layers(x)


def load_datasets():
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    X, y = torch.tensor([row["x"] for row in rows]), torch.tensor([row["y"] for row in rows])
    return {"train": ToyDataset(X[:-40], y[:-40]), "test": ToyDataset(X[-40:], y[-40:])}
"""
SETTINGS = """
name = "toy"
[data]
factory = "notebook:load_datasets"
inputs = ["rows.jsonl"]
[model]
factory = "notebook:NeuralNetwork"
[optimizer]
lr = 0.1
[training]
num_epochs = 5
"""


@pytest.fixture(scope="module")
def first_champion(site) -> dict[str, float]:
    """Deploy, wait for a planned run to promote a champion and for the next to find nothing new; the seconds of both."""
    (site.project / "network.py").write_text(NETWORK)
    for folder, name in itertools.product((site.project, site.desk), ("torchvision", "flows", "tasks", "yaml")):
        (folder / f"{name}.py").write_text("raise RuntimeError('only the factory is imported from here')")
    site.start_worker()
    started = time.monotonic()
    settings = ("--name", "digits", "--training.num_epochs", "2", "--model.factory", "network:build")
    deployed = site.refit("deploy", "--cron", EVERY_THIRTY_SECONDS, "--timezone", "Europe/Berlin", *settings)
    assert deployed.returncode == 0, deployed.stderr
    assert "power cut" not in deployed.stdout
    wait_for(lambda: read_alias(site.store, "digits"), SELDOM)
    seconds = {"to the first champion": time.monotonic() - started}
    wait_for(lambda: [run for run in site.list_runs("retrain/digits") if "nothing new" in (run["state"]["message"] or "")], SELDOM)
    seconds["to the first that found nothing new"] = time.monotonic() - started
    assert site.refit("deploy", *settings).returncode == 0
    return seconds


def test_a_planned_run_promotes_the_first_champion_and_the_next_finds_nothing_new(site, first_champion, capsys):
    with capsys.disabled():
        print(f"\nseconds from `refit deploy`: {first_champion}")
    runs = site.list_runs("retrain/digits")
    assert {run["created_by"]["type"] for run in runs} == {"SCHEDULE"}
    assert (runs[0]["state_type"], runs[0]["state_name"]) == ("COMPLETED", "Promoted")
    assert {run["state_name"] for run in runs[1:]} == {"Skipped"}
    assert list_versions(site.store, "digits") == [1]


def test_deploying_again_replaces_and_makes_nothing_twice(site, first_champion):  # noqa: ARG001
    assert len(site.ask("/deployments/filter").json()) == 3
    assert len(site.ask("/work_pools/filter").json()) == 1
    automations = site.ask("/automations/filter").json()
    assert [automation["name"] for automation in automations] == [
        "refit: end cancelled runs whose worker does not",
        "refit: give up on runs that die before they begin",
        "refit: go on without an answer about digits",
        "refit: note that a silent run has crashed",
        "refit: start a crashed run again",
    ]
    (plan,) = site.read("/deployments/name/retrain/digits")["schedules"]
    assert (plan["schedule"]["cron"], plan["schedule"]["timezone"]) == ("0 3 * * *", "UTC")
    planned = site.ask("/flow_runs/filter", flow_runs={"state": {"type": {"any_": ["SCHEDULED"]}}}).json()
    assert min(planned, key=lambda run: run["expected_start_time"])["name"].startswith("retrain digits, ")


def test_no_folder_of_the_deploying_machine_is_in_a_deployment(site, first_champion):  # noqa: ARG001
    for deployment in site.ask("/deployments/filter").json():
        told = json.dumps(deployment)
        assert not [place for place in (ROOT, site.desk, site.project, Path(sys.prefix), Path.home()) if str(place) in told]


def test_run_and_version_tell_the_settings_that_deployment_and_worker_gave(site, first_champion):  # noqa: ARG001
    settings = json.loads(site.store.read("models/digits/v1/settings.json"))
    assert (settings["training"]["num_epochs"], settings["optimizer"]["momentum"]) == (2, 0.9)
    run = site.list_runs("retrain/digits")[0]
    shown = site.ask("/artifacts/filter", artifacts={"flow_run_id": {"any_": [run["id"]]}, "key": {"any_": ["digits-settings"]}})
    rows = {row["setting"]: (row["value"], row["from"]) for row in json.loads(shown.json()[0]["data"])}
    assert rows["training.num_epochs"] == ("2", "deployment")
    assert rows["optimizer.momentum"] == ("0.9", "refit.toml")
    assert rows["optimizer.weight_decay"] == ("0.0", "default")


def test_status_tells_the_champion_and_the_last_and_next_run(site, first_champion):  # noqa: ARG001
    shown = site.refit("status", "digits", "--json", cwd=site.project)
    assert shown.returncode == 0, shown.stderr
    status = json.loads(shown.stdout)
    assert [(model["champion"], model["decision"]["action"]) for model in status["models"]] == [(1, "promote")]
    (retraining,) = status["retraining"]
    assert (retraining["schedule"], retraining["num_workers"]) == ("0 3 * * * UTC", 1)
    assert retraining["last_run"]["name"]
    assert retraining["next_run_at"] is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": {"lr": -1}}, r"changes.optimizer.lr"),
        ({"optimizer": {"learning_rate": 1}}, r"learning_rate"),
        ({"model": {"activation": "softsign"}}, r"relu"),
        ({"store": {"url": "s3://key:secret@bucket"}}, r"changes.store.url"),
    ],
)
def test_a_wrong_parameter_is_refused_before_there_is_a_run(site, first_champion, settings, message):  # noqa: ARG001
    num_runs = site.ask("/flow_runs/count").json()
    answer = site.start_run("train/digits", {"changes": settings})
    assert answer.is_client_error
    assert message in answer.json()["detail"]
    assert site.ask("/flow_runs/count").json() == num_runs


def write_rows(folder: Path, num_rows: int) -> None:
    """Rows of two classes, the newest first, so that test rows stay the same."""
    rows = [
        {"x": [row % 2 + 0.1 * (row % 7), -1.0 + 0.1 * (row % 5) + row / 1e4], "y": row % 2} for row in reversed(range(num_rows))
    ]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


@pytest.fixture
def notebook(site) -> Path:
    """Another project, with classes of a notebook, a worker of its own, and rows in a file."""
    folder = site.folder / "notebook"
    folder.mkdir()
    (folder / "notebook.py").write_text(NOTEBOOK)
    (folder / "refit.toml").write_text(SETTINGS)
    write_rows(folder, 140)
    command = [PREFECT, "worker", "start", "--pool", name_pool(folder), "--type", "process"]
    site.start("worker", command, folder, {**site.of_worker, "PROJECT_FOLDER": str(folder)})
    return folder


def test_a_data_set_and_a_network_of_ones_own_are_retrained_on_a_schedule_when_files_grow(site, notebook):
    deployed = site.refit("deploy", "--cron", EVERY_TWENTY_SECONDS, cwd=notebook)
    assert deployed.returncode == 0, deployed.stderr
    trained = site.refit("train", "--store.url", "here", "--json", cwd=notebook)
    assert trained.returncode == 0, trained.stderr
    store = Store(str(notebook / "refit-store"))
    wait_for(lambda: read_alias(store, "toy"), SELDOM)
    assert read_record(store, "toy", 1)["weights_digest"] == json.loads(trained.stdout)["weights_digest"]
    write_rows(notebook, 180)
    wait_for(lambda: list_versions(store, "toy") == [1, 2], SELDOM)
    splits = [load_part(store, "toy", number, "manifest")["splits"] for number in (1, 2)]
    assert [{split: info["rows"] for split, info in found.items()} for found in splits] == [
        {"train": 100, "test": 40},
        {"train": 140, "test": 40},
    ]
    assert splits[0]["test"]["digest"] == splits[1]["test"]["digest"]
    assert site.refit("deploy", cwd=notebook).returncode == 0


def test_a_flow_of_ones_own_reads_results_and_an_automation_scores_again_when_promoted(site, first_champion):  # noqa: ARG001
    """The example and the automation of the documentation."""
    page = (ROOT / "docs" / "how-to" / "react.md").read_text()
    code = re.search(r"## Score again.*?```python\n(.*?)```", page, flags=re.DOTALL)[1]
    for name, ours in {"penguins": "digits", "new.csv": "digits.parquet", "scores.parquet": "again.parquet"}.items():
        code = code.replace(name, ours)
    subprocess.run([sys.executable, "-c", code], env=site.environment, check=True)
    settings, num_rows = site.project / "refit.toml", pl.read_parquet(site.project / "digits.parquet").height
    settings.write_text(settings.read_text().replace("seed = 3", "seed = 4") + '[promotion]\nrule = "not_worse"\nmargin = 1.0\n')
    example = [sys.executable, ROOT / "examples" / "retrain_then_score.py", "digits", "digits.parquet", "scored.parquet"]
    done = subprocess.run(example, env=site.environment, cwd=site.desk, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == f"{num_rows} rows scored by digits@v2: scored.parquet"
    wait_for(lambda: len(site.list_runs("predict/digits")) == 2)
    for output in ("scored.parquet", "again.parquet"):
        scored = pl.read_parquet(site.project / output)
        assert (scored["model"].unique().to_list(), scored.height) == (["digits@v2"], num_rows)


def test_failed_retraining_is_told_to_the_block_that_deploy_was_given(site, first_champion, mailbox):  # noqa: ARG001
    url, messages = mailbox
    subprocess.run([sys.executable, "-c", MAKE_BLOCK, url], env=site.environment, check=True)
    refused = site.refit("deploy", "--name", "digits", "--notify", "custom-webhook/nobody")
    assert refused.returncode == 2
    assert "--notify: expected TYPE/NAME of a Prefect block, found no block custom-webhook/nobody" in refused.stderr
    assert site.refit("deploy", "--name", "digits", "--notify", "custom-webhook/team").returncode == 0
    site.start_run("retrain/digits", {"changes": {"data": {"source": "nowhere.parquet"}}})
    message = messages.get(timeout=TIMEOUT_SECONDS)
    assert re.fullmatch(r"retrain digits, .*: Failed", message["subject"])
    assert "nowhere.parquet: expected a file, folder or glob, found nothing there" in message["body"]
    assert site.refit("deploy", "--name", "digits").returncode == 0
    assert "refit: tell of trouble with digits" not in [found["name"] for found in site.ask("/automations/filter").json()]


@pytest.fixture(scope="module")
def asking(site, first_champion) -> str:  # noqa: ARG001
    """The id of a run that asks a person."""
    settings = {"name": "asked", "training": {"num_epochs": 1}, "promotion": {"mode": "ask"}}
    run = site.start_run("retrain/digits", {"settings": settings}).json()["id"]
    wait_for(lambda: find_processes("PREFECT__FLOW_RUN_ID", run))
    wait_for(lambda: site.read(f"/flow_runs/{run}")["state_name"] == "Suspended")
    wait_for(lambda: not find_processes("PREFECT__FLOW_RUN_ID", run))
    return run


def test_two_workers_share_runs_that_go_on_while_the_server_is_away_and_report_to_the_next(site, asking):  # noqa: ARG001
    site.start_worker()
    wait_for(lambda: len(site.ask(f"/work_pools/{name_pool(site.desk)}/workers/filter").json()) == 2)
    changes = [{"name": "away", "seed": seed, "training": {"num_epochs": 20, "patience": None}} for seed in (1, 2)]
    runs = [site.start_run("train/digits", {"changes": given}).json()["id"] for given in changes]
    wait_for(lambda: all(site.ask("/task_runs/count", flow_runs={"id": {"any_": [run]}}).json() for run in runs))
    site.kill(site.server)
    assert list_versions(site.store, "away") == []
    wait_for(lambda: list_versions(site.store, "away") == [1, 2])
    site.server = site.start_server()
    wait_for(lambda: all(site.read(f"/flow_runs/{run}")["state_type"] in FINAL for run in runs), SELDOM)
    found = [site.read(f"/flow_runs/{run}") for run in runs]
    assert [(run["state_name"], run["run_count"]) for run in found] == [("Completed", 1)] * 2
    assert list_versions(site.store, "away") == [1, 2]


def test_a_run_that_asks_has_no_process_and_goes_on_when_it_is_answered_on_another_server_and_worker(site, asking):
    for worker in site.workers:
        site.kill(worker)
    (site.project / "digits.parquet").rename(site.project / "gone.parquet")
    assert site.read(f"/flow_runs/{asking}")["state_name"] == "Suspended"
    answer = site.ask(f"/flow_runs/{asking}/resume", run_input={"answer": "approve", "comment": "as you like"})
    assert answer.json()["status"] == "ACCEPT"
    site.start_worker()
    wait_for(lambda: site.read(f"/flow_runs/{asking}")["state_type"] in FINAL, SELDOM)
    assert site.read(f"/flow_runs/{asking}")["state_name"] == "Promoted"
    assert read_alias(site.store, "asked") == 1
    (site.project / "gone.parquet").rename(site.project / "digits.parquet")


def fill_disk(site) -> None:
    """As far as the server can tell: no state of the run of `full` finds room any more."""
    with sqlite3.connect(Path(site.environment["PREFECT_HOME"], "prefect.db"), timeout=60) as database:
        database.execute(
            "create trigger full before insert on flow_run_state"
            " when (select name from flow_run where id = new.flow_run_id) like 'train full, %'"
            " begin select raise(abort, 'database or disk is full'); end"
        )


@pytest.mark.parametrize(("name", "seed", "end"), [("full", "1", fill_disk), ("gone", "2", lambda site: site.kill(site.server))])
def test_a_run_from_a_terminal_keeps_what_it_trained_whatever_becomes_of_its_server(site, first_champion, name, seed, end):  # noqa: ARG001
    command = [REFIT, "train", "--name", name, "--seed", seed, "--training.num_epochs", "4", "--training.patience", "none"]
    run = site.start(name, command, site.project)
    wait_for(lambda: "epoch 1/4" in site.log(name).read_text() or run.poll() is not None)
    assert run.poll() is None, site.log(name).read_text()
    end(site)
    assert run.wait(timeout=TIMEOUT_SECONDS) == 1
    lines = site.log(name).read_text().splitlines()
    assert f"saved {name}@v1" in lines[-2]
    assert lines[-1].startswith(f"error: PREFECT_API_URL: expected the Prefect server at {site.url} to answer until the end, found")
    assert lines[-1].endswith("check that the server runs and has disk space, then run the same command again")
    assert list_versions(site.store, name) == [1]
