"""The `refit` command as a user starts it: processes of its own, each with a Prefect home of its own."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import polars as pl
import pytest
from servers import make_home

pytestmark = pytest.mark.slow

REFIT = Path(sys.executable).with_name("refit")
PREFECT = Path(sys.executable).with_name("prefect")
TIMEOUT_SECONDS = 180
NOISE = ("Traceback", "database is locked", "Warning")


@pytest.fixture
def environment(prefect_home) -> dict[str, str]:
    return make_environment(prefect_home)


def make_environment(home: str) -> dict[str, str]:
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "REFIT_", "COV_"))}
    return {**mine, "PREFECT_HOME": home, "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120"}


@pytest.fixture
def refit(environment):
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([REFIT, *arguments], env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)

    return run


@pytest.fixture(scope="module")
def server(tmp_path_factory, prefect_database) -> Iterator[str]:
    """A Prefect server in a process of its own; the address of its API."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            env={**make_environment(make_home(folder, prefect_database)), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}/api"
        deadline = time.monotonic() + 120
        while not is_healthy(url):
            assert process.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.5)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def served(environment, server) -> str:
    """Runs of this test go to the server, and start none of their own, which takes seconds; its address."""
    environment["PREFECT_API_URL"] = server
    return server


def is_healthy(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    return False


def versions() -> list[str]:
    folder = Path("refit-store/models/model")
    return sorted(path.name for path in folder.glob("v*"))


def assert_quiet(stderr: str) -> None:
    assert [word for word in NOISE if word in stderr] == [], stderr


@pytest.mark.usefixtures("served")
def test_only_the_factory_is_imported_from_the_working_directory(refit):
    for name in ("torchvision", "flows", "tasks", "yaml"):
        Path(f"{name}.py").write_text("raise RuntimeError('only the factory is imported from here')")
    Path("networks.py").write_text("from layers import build\n")
    Path("layers.py").write_text("def build(*sizes):\n    from torch import nn\n    import late\n    return nn.Linear(*sizes)\n")
    Path("late.py").write_text("")
    finished = refit("train", "--model.factory", "networks:build")
    assert finished.returncode == 0, finished.stderr
    assert_quiet(finished.stderr)


def test_json_is_one_object_on_standard_output_and_nothing_else(refit):
    finished = refit("train", "--json")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("\n") == 1
    result = json.loads(finished.stdout)
    losses = [f"{loss:.2f}" for epoch in result["epochs"] for loss in epoch["batch_losses"]]
    assert losses == ["0.80", "0.82", "0.30", "0.22", "0.00", "0.00"]
    assert (result["name"], result["version"], result["best_epoch"]) == ("model", 1, 3)
    assert {split: scores["accuracy"] for split, scores in result["metrics"].items()} == {"train": 1.0, "test": 1.0}
    assert (result["lead"]["model"], result["lead"]["majority"], result["lead"]["split"]) == (1.0, 0.5, "test")
    assert result["lead"]["warning"].startswith("the model does not beat the majority class by more than noise: accuracy 1.0000")
    assert result["data"]["splits"] == {"train": 5, "test": 2}
    assert result["data"]["kinds"] == {"x1": "numeric", "x2": "numeric"}
    assert (result["data"]["rows"], result["data"]["classes"], result["data"]["dropped_columns"]) == (7, [0, 1], {})
    assert Path(result["path"]) == Path("refit-store/models/model/v1").resolve()
    assert_quiet(finished.stderr)
    epochs = re.findall(r"^epoch (\d)/3: train loss \d\.\d{4}$", finished.stderr, flags=re.MULTILINE)
    assert epochs == ["1", "2", "3"]

    script = f"import refit; print(refit.load_model({result['path']!r}).predict({{'x1': [-1.2, 2.7], 'x2': [3.1, -1.5]}}).tolist())"
    predicted = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert predicted.stdout == "[0, 1]\n"


HOSTILE = {
    **dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9"),
    "PREFECT_SERVER_API_AUTH_STRING": "admin:word",
    "PREFECT_SERVER_API_BASE_PATH": "/prefect",
    "LC_ALL": "POSIX",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
}


def test_a_run_of_its_own_server_takes_nothing_amiss_that_the_environment_says(environment):
    """A proxy, a server of others, and no UTF-8."""
    Path("smörgås").mkdir()
    finished = subprocess.run(
        [REFIT, "train"], env={**environment, **HOSTILE}, cwd="smörgås", capture_output=True, timeout=TIMEOUT_SECONDS
    )
    assert finished.returncode == 0, finished.stderr
    assert Path("smörgås/refit-store/models/model/v1/model.pt").exists()
    assert b"saved model@v1 in " in finished.stdout
    assert_quiet(finished.stderr.decode())


def test_a_run_whose_streams_are_closed_is_a_run_like_others(environment):
    finished = subprocess.run(["sh", "-c", '"$0" train <&- >&- 2>&-', REFIT], env=environment, timeout=TIMEOUT_SECONDS)
    assert finished.returncode == 0
    assert Path("refit-store/models/model/v1/model.pt").exists()


def test_a_forked_process_leaves_no_server_behind(environment):
    """Such a one, as those of `ProcessPoolExecutor` on Linux, skips the steps by which Prefect stops its server at the exit."""
    script = (
        "import multiprocessing\n"
        "def train():\n"
        "    from refit.flows.training import train\n"
        "    train()\n"
        "process = multiprocessing.get_context('fork').Process(target=train)\n"
        "process.start(); process.join(); raise SystemExit(process.exitcode)\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
    )
    assert finished.returncode == 0, finished.stderr
    assert "Stopping temporary server" in finished.stderr


@pytest.mark.usefixtures("served")
def test_a_piped_run_prints_tables_without_colours_and_the_versions_are_listed(refit):
    finished = refit("train", "--name", "piped")
    assert finished.returncode == 0, finished.stderr
    assert "0.80 0.82" in finished.stdout
    assert "0.30 0.22" in finished.stdout
    assert "5/5" in finished.stdout
    assert "2/2" in finished.stdout
    warning = "the model does not beat the majority class by more than noise: accuracy 1.0000 on only 2 test rows, where the"
    assert finished.stdout.splitlines()[-2].startswith(f"warning: {warning}")
    assert finished.stdout.splitlines()[-1] == f"saved piped@v1 in {Path('refit-store/models/piped/v1').resolve()}"
    assert "\x1b" not in finished.stdout + finished.stderr
    assert_quiet(finished.stderr)
    assert "piped@v1" in refit("models").stdout
    folder, card = refit("show", "piped").stdout.split("\n", 1)
    assert folder == str(Path("refit-store/models/piped/v1").resolve())
    assert card.split()[0] == "piped"


GROUPED = ("--training.epochs_per_task", "20")


@pytest.mark.usefixtures("served")
def test_retraining_prints_its_decision_and_exits_with_zero_whatever_that_is(refit):
    source = str(Path(__file__).parents[2] / "examples/penguins.csv")
    arguments = ("retrain", "--name", "penguins", "--data.source", source, "--data.target", "species", *GROUPED)
    first = refit(*arguments, "--training.num_epochs", "20")
    assert first.returncode == 0, first.stderr
    assert_quiet(first.stderr)
    report = Path("refit-store/models/penguins/reports/v1.html").resolve()
    *_, reason, champion, last = first.stdout.splitlines()
    assert reason.startswith("promoted: accuracy ")
    assert [champion, last] == ["the champion is penguins@v1", f"report: {report}"]
    assert report.exists()

    skipped = refit(*arguments, "--training.num_epochs", "20", "--json")
    assert (skipped.returncode, skipped.stdout.count("\n")) == (0, 1)
    assert json.loads(skipped.stdout)["outcome"] == "skipped"
    assert json.loads(skipped.stdout)["champion"] == "penguins@v1"

    kept = refit(*arguments, "--training.num_epochs", "20", "--optimizer.lr", "0.000001")
    assert kept.returncode == 0
    assert re.search(r"penguins@v2 [│┃] penguins@v1 [│┃] majority class [│┃] difference", kept.stdout)
    assert "not promoted: accuracy" in kept.stdout
    assert "the champion is penguins@v1" in kept.stdout


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data.target", "z"), r"data\.target: expected .*`z`|`z`"),
        (("--compute.device", "cuda:99"), r"compute\.device: expected a device of this machine, found 'cuda:99'"),
    ],
    ids=["target", "device"],
)
def test_bad_data_or_settings_found_by_the_run_exit_with_two_and_one_line(refit, arguments, message):
    assert_refused(refit, arguments, message)


def test_bad_data_exit_with_two_and_one_line_without_a_server_too(refit):
    assert_refused(refit, ("--data.source", "absent.csv"), r"absent\.csv: expected a file, folder or glob, found nothing there")


def assert_refused(refit, arguments: tuple[str, ...], message: str) -> None:
    finished = refit("train", *arguments)
    assert (finished.returncode, finished.stdout) == (2, ""), finished.stderr
    assert_quiet(finished.stderr)
    (line,) = (line for line in finished.stderr.splitlines() if line.startswith("error: "))
    assert re.search(message, line)
    assert finished.stderr.splitlines()[-1] == line
    assert versions() == []


@pytest.mark.usefixtures("served")
def test_a_diverging_run_exits_with_one_names_epoch_and_batch_and_keeps_earlier_versions(refit):
    assert refit("train").returncode == 0
    kept = {path: path.read_bytes() for path in Path("refit-store/models").rglob("*") if path.is_file()}
    for arguments in (("--optimizer.lr", "1e30"), ("--optimizer.lr", "1e30", "--json")):
        finished = refit("train", *arguments)
        assert (finished.returncode, finished.stdout) == (1, "")
        assert_quiet(finished.stderr)
        last = finished.stderr.splitlines()[-1]
        assert re.match(r"error: epoch 1, batch 2: expected a finite loss, found (nan|inf); lower optimizer\.lr", last)
    assert {path: path.read_bytes() for path in Path("refit-store/models").rglob("*") if path.is_file()} == kept


@pytest.mark.usefixtures("served")
def test_a_store_that_cannot_be_written_exits_with_one_and_names_it(refit):
    Path("file").write_text("")
    finished = refit("train", "--store.url", "file/store")
    assert (finished.returncode, finished.stdout) == (1, "")
    assert_quiet(finished.stderr)
    assert "file/store" in finished.stderr.splitlines()[-1]


def test_two_runs_of_one_recipe_at_once_train_it_once(environment):
    """As two terminals: the same store, the same Prefect home, in which both are the first to come."""
    Path(environment["PREFECT_HOME"], "prefect.db").unlink()
    command = [REFIT, "train", "--json"]
    runs = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outcomes = [run.communicate(timeout=TIMEOUT_SECONDS) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outcomes
    results = [json.loads(out) for out, _ in outcomes]
    assert {result["version"] for result in results} == {1}
    assert sorted(result["is_new"] for result in results) == [False, True]
    assert len({result["weights_digest"] for result in results}) == 1
    assert versions() == ["v1"]
    for _, stderr in outcomes:
        assert_quiet(stderr)


@pytest.mark.usefixtures("served")
def test_two_runs_at_once_get_a_version_each(environment):
    commands = [[REFIT, "train", "--json", "--seed", seed] for seed in ("1", "2")]
    runs = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    outcomes = [run.communicate(timeout=TIMEOUT_SECONDS) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outcomes
    results = [json.loads(out) for out, _ in outcomes]
    assert {result["version"] for result in results} == {1, 2}
    assert len({result["weights_digest"] for result in results}) == 2
    assert versions() == ["v1", "v2"]
    for _, stderr in outcomes:
        assert_quiet(stderr)


def ask(url: str, path: str, body: dict) -> list[dict]:
    answer = httpx.post(f"{url}{path}", json=body, timeout=30)
    answer.raise_for_status()
    return answer.json()


def test_a_server_shows_the_run_its_tasks_and_its_lines(refit, served):
    finished = refit("train", "--name", "toy", "--json")
    assert finished.returncode == 0, finished.stderr
    assert_quiet(finished.stderr)
    (run,) = find_runs(served, "train toy, ")
    assert run["state_type"] == "COMPLETED"
    assert run["parameters"]["settings"]["name"] == "toy"
    names: set[str] = set()
    lines = ""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not ("save version" in names and "saved toy@v1" in lines):
        tasks = ask(served, "/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
        names = {task["name"] for task in tasks if task["state_type"] == "COMPLETED"}
        logs = ask(served, "/logs/filter", {"logs": {"flow_run_id": {"any_": [run["id"]]}}})
        lines = "\n".join(entry["message"] for entry in logs)
        time.sleep(0.5)
    epochs = {f"train epoch {epoch}" for epoch in (1, 2, 3)}
    others = {"build data set", "build loaders", "start training", "evaluate train", "evaluate test", "save version"}
    assert names == epochs | others
    assert "epoch 3/3: train loss" in lines
    assert "saved toy@v1 in" in lines


def test_a_server_shows_a_run_that_failed(refit, served):
    assert refit("train", "--name", "doomed", "--optimizer.lr", "1e30").returncode == 1
    (run,) = find_runs(served, "train doomed, ")
    assert run["state_type"] == "FAILED"
    assert "epoch 1, batch 2: expected a finite loss" in run["state"]["message"]


def find_runs(url: str, name: str) -> list[dict]:
    return ask(url, "/flow_runs/filter", {"flow_runs": {"name": {"like_": name}}})


def run_on_a_terminal(command: list, environment: dict[str, str]) -> tuple[int, str]:
    """The exit code, and all that a terminal of 100 columns was sent."""
    primary, secondary = pty.openpty()
    environment = {**environment, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    process = subprocess.Popen(command, env=environment, stdin=secondary, stdout=secondary, stderr=secondary, close_fds=True)
    os.close(secondary)
    shown = b""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if not select.select([primary], [], [], 1)[0]:
            if process.poll() is not None:
                break
            continue
        try:
            part = os.read(primary, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(primary)
    return process.wait(timeout=30), shown.decode()


@pytest.mark.usefixtures("served")
def test_on_a_terminal_a_bar_counts_the_epochs_and_is_gone_at_the_end(environment):
    code, shown = run_on_a_terminal([REFIT, "train", "--training.num_epochs", "100"], environment)
    assert code == 0, shown
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert_quiet(text)
    counts = [int(count) for count in re.findall(r"epoch\s+(\d+)/100", text)]
    assert len(counts) > 2
    assert counts == sorted(counts)
    assert "train loss" in text
    assert "saved model@v1 in" in text.replace("\r\n", "")
    after = text.partition("┏")[2]  # the tables come last, and the bar was wiped before them
    assert after
    assert "/100" not in after


@pytest.mark.usefixtures("served")
def test_scoring_that_is_stopped_in_the_middle_leaves_what_was_there(refit, environment):
    assert refit("train").returncode == 0
    draw = np.random.default_rng(0)
    pl.DataFrame({name: draw.normal(size=4_000_000) for name in ("x1", "x2")}).write_parquet("rows.parquet")
    Path("out").mkdir()
    Path("out/scored.parquet").write_text("yesterday's")
    command = [REFIT, "predict", "model@v1", "rows.parquet", "--output", "out/scored.parquet"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while len(list(Path("out").iterdir())) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (128 + signal.SIGTERM, "")
    assert "stopped by SIGTERM; nothing was written, start again with: refit predict model@v1 rows.parquet --output" in err
    assert_quiet(err)
    assert [(path.name, path.read_text()) for path in Path("out").iterdir()] == [("scored.parquet", "yesterday's")]
