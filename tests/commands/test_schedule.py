import json
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from refit.errors import SettingsError
from refit.registry.ledger import append_entry, entry_path
from refit.registry.versions import move_alias
from refit.server import project
from refit.server.api import Deployed, Ran

NOWHERE = "http://127.0.0.1:9/api"
ROWS = ("--data.source", "rows.csv")
SCORING = ("--predict-source", "new.csv", "--predict-output", "scores.parquet")


@pytest.fixture(autouse=True)
def _no_server() -> Iterator[None]:
    with temporary_settings({PREFECT_API_URL: None}):
        yield


@pytest.fixture
def nowhere() -> Iterator[None]:
    with temporary_settings({PREFECT_API_URL: NOWHERE}):
        yield


def lines_of(output: str) -> dict[str, str]:
    """Names and texts of the indented lines."""
    rows = [line.strip().partition("  ") for line in output.splitlines() if line.startswith("  ")]
    return {name: text.strip() for name, _, text in rows}


@pytest.mark.parametrize("command", [ROWS, ("--data.source", "notebook", "--cron", "0 5 * * *")])
def test_without_a_server_deploying_exits_with_two_and_says_how_to_start_one(refit, command):
    code, out, err = refit("deploy", *command)
    assert (code, out) == (2, "")
    assert err == (
        "error: PREFECT_API_URL: expected the address of a Prefect server, found none;"
        " start one with `refit server` and set it to http://127.0.0.1:4200/api\n"
    )


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize("command", [("deploy", *ROWS), ("train",)])
def test_a_server_that_does_not_answer_is_named_and_the_exit_code_is_one(refit, command, monkeypatch):
    monkeypatch.setattr("refit.server.api.SECONDS_TO_ANSWER", 0.1)
    monkeypatch.setattr("refit.server.deployments.SECONDS_TO_DEPLOY", 0.1)
    code, out, err = refit(*command)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: PREFECT_API_URL: expected a Prefect server at {NOWHERE}, found ")
    assert "start it, or set the address of another" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*ROWS, "--cron", "every night"), "--cron: expected a cron line such as .*, found 'every night'"),
        ((*ROWS, "--timezone", "Berlin"), "--timezone: expected .* a time zone such as Europe/Berlin, found 'Berlin'"),
        (("--data.target", "species"), r"data\.source: expected the rows .*, found none; add --data.source or .*`notebook`"),
        (
            (*ROWS, "--predict-cron", "0 5 * * *"),
            "--predict-source: expected a path or URL, as --predict-cron is given, found none",
        ),
        ((*ROWS, *SCORING, "--predict-cron", "daily"), "--predict-cron: expected a cron line such as .*, found 'daily'"),
        ((*ROWS, "--predict-output", "s3://key:s3cret@bucket"), "--predict-output: expected a URL without a secret"),
        ((*ROWS, "--job-variables", "image=refit"), "--job-variables: expected a JSON object such as .*, found 'image=refit'"),
        ((*ROWS, "--job-variables", '{"env": ["A=1"]}'), "--job-variables: expected a JSON object such as"),
        ((*ROWS, "--concurrency-limit", "0"), "--concurrency-limit: expected 1 to 2147483647, found 0"),
        ((*ROWS, "--concurrency-limit", f"{10**20}"), "--concurrency-limit: expected 1 to 2147483647, found 1000"),
        ((*ROWS, "--cron", "0 0 30 2 *"), r"--cron: expected a cron line of dates that come, found '0 0 30 2 \*'"),
        ((*ROWS, *SCORING, "--predict-cron", "0 0 31 2 *"), "--predict-cron: expected a cron line of dates that come"),
        ((*ROWS, "--timezone", ""), "--timezone: expected one such as Europe/Berlin, found an empty text"),
        ((*ROWS, "--tag", ""), "--tag: expected a text, found an empty one"),
        (("--optimizer.lr", "0"), "optimizer.lr: expected a number of more than 0"),
        (("--store.url", "s3://key:s3cret@bucket"), "store.url: expected a URL without a secret"),
    ],
)
def test_a_schedule_or_setting_that_is_none_is_refused_before_anything_is_made(refit, arguments, message):
    code, out, err = refit("deploy", *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "s3cret" not in err
    assert re.search(message, err)


@pytest.mark.parametrize(("directory", "found"), [("", "none"), ("absent", "no folder absent")])
def test_a_run_of_a_worker_without_a_project_folder_fails_and_says_how_to_start_one(monkeypatch, directory, found):
    monkeypatch.setenv("PROJECT_FOLDER", directory)
    project.start_apart()
    with pytest.raises(SettingsError, match=rf"PROJECT_FOLDER: expected the folder of `refit.toml` .*, found {found}; start"):
        project.enter_project()


def test_a_run_starts_apart_and_enters_the_project_folder(monkeypatch):
    """Prefect puts the folder that a run starts in ahead of all packages on the import path."""
    home = Path.cwd()
    Path("project").mkdir()
    monkeypatch.setenv("PROJECT_FOLDER", str(home / "project"))
    directory = project.start_apart()["directory"]
    assert list(Path(directory).iterdir()) == []
    assert Path(directory) == Path.cwd() != home
    project.enter_project()
    assert Path.cwd() == home / "project"


def test_a_run_that_did_not_start_apart_stays_where_it_is(monkeypatch):
    monkeypatch.setenv("PROJECT_FOLDER", "absent")
    home = Path.cwd()
    project.enter_project()
    assert Path.cwd() == home


def test_status_tells_the_ledger_without_a_server_and_says_so(refit, toy):
    move_alias(toy, "toy", 1, expected=None, why="it beats the majority class")
    code, out, err = refit("status")
    assert (code, err) == (0, "")
    lines = lines_of(out)
    assert re.fullmatch(r"v1 of 1, trained \d+ \w+ ago, promoted \d+ seconds? ago", lines["champion"])
    assert re.fullmatch(r"promoted v1 \d+ seconds? ago: it beats the majority class", lines["last decision"])
    assert lines["not known"].startswith("PREFECT_API_URL: expected the address of a Prefect server, found none")
    append_entry(toy, "toy", action="keep", why="it may be luck", alias="champion", before=1, after=2)
    assert re.fullmatch(r"turned down v2 \d+ seconds? ago: it may be luck", lines_of(refit("status", "toy")[1])["last decision"])
    shown = json.loads(refit("status", "--json")[1])
    assert [(model["name"], model["champion"], model["decision"]["why"]) for model in shown["models"]] == [
        ("toy", 1, "it may be luck")
    ]
    models = Path(toy.root, "models", "toy")
    shutil.copytree(models / "v1", models / "v3")
    assert lines_of(refit("status")[1])["champion"].startswith("v1 of 3, ")  # v2 was let go


def test_a_champion_that_is_trained_again_is_kept_and_not_turned_down(refit, toy):
    move_alias(toy, "toy", 1, expected=None, why="")
    append_entry(toy, "toy", action="keep", why="toy@v1 is the champion already", alias="champion", before=1, after=1)
    assert lines_of(refit("status", "toy")[1])["last decision"].startswith("kept v1 ")


@pytest.mark.parametrize(
    ("has_failed", "minutes_late", "code"), [(False, 0, 0), (False, 4, 0), (True, 0, 1), (False, 6, 1), (False, None, 0)]
)
def test_a_retraining_that_failed_or_is_late_has_status_exit_with_one(refit, monkeypatch, has_failed, minutes_late, code):
    now = datetime.now(UTC)
    following = None if minutes_late is None else now - timedelta(minutes=minutes_late)
    deployed = Deployed("retrain/a", "0 3 * * *", Ran("a", "Ended", has_failed, "", now), following, "pool", num_workers=1)
    monkeypatch.setattr("refit.commands.schedule._read_retraining", lambda _: [deployed])
    assert refit("status")[0] == code
    assert json.loads(refit("status", "--json")[1])["retraining"][0]["last_run"]["has_failed"] == has_failed


def test_status_says_how_to_start_a_worker_where_none_is_online(refit, monkeypatch):
    deployed = [Deployed(f"retrain/{name}", "", None, None, "night", num_workers=0) for name in ("a", "b")]
    monkeypatch.setattr("refit.commands.schedule._read_retraining", lambda _: deployed)
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = refit("status")
    assert code == 0
    assert out.count("no worker of the pool night is online\n") == 1
    assert lines_of(out)["start one in the project's folder"] == project.START_WORKER.format(pool="night")


def test_status_of_a_model_that_is_not_there_names_those_there_are(refit, toy):  # noqa: ARG001
    code, out, err = refit("status", "fish")
    assert (code, out) == (1, "")
    assert "found no 'fish'; models there: toy" in err


def test_status_of_a_model_that_is_deployed_and_has_no_version_yet_tells_of_its_runs(refit, monkeypatch):
    ran = Ran("first night", "Failed", has_failed=True, message="no rows", at=datetime.now(UTC))
    deployed = [Deployed("retrain/fish", "0 3 * * *", ran, None, "pool", num_workers=1)]
    monkeypatch.setattr("refit.commands.schedule._read_retraining", lambda _: deployed)
    code, out, _ = refit("status", "fish")
    lines = lines_of(out)
    assert (code, lines["champion"]) == (1, "none")
    assert lines["last run"].startswith("first night, Failed ")


def test_status_of_an_empty_store_says_so(refit):
    code, out, _ = refit("status")
    assert code == 0
    assert "no models in refit-store" in out


def test_damage_is_told_and_the_exit_code_is_one(refit, toy):
    move_alias(toy, "toy", 1, expected=None, why="")
    path = Path(toy.root, entry_path("toy", 1))
    path.write_text("{")
    code, out, err = refit("status")
    assert (code, err) == (1, "")
    assert str(path) in out


def test_a_champion_that_a_damaged_ledger_hides_is_unknown(refit, toy):
    move_alias(toy, "toy", 1, expected=None, why="")
    entry = append_entry(toy, "toy", action="keep", why="it may be luck", alias="champion", before=1, after=2)
    Path(toy.root, entry_path("toy", entry.number)).write_text("{")
    code, out, _ = refit("status")
    assert (code, lines_of(out)["champion"]) == (1, "unknown")


@pytest.mark.usefixtures("nowhere")
def test_status_tells_the_ledger_when_the_server_does_not_answer_and_the_exit_code_is_one(refit, toy):
    move_alias(toy, "toy", 1, expected=None, why="")
    code, out, err = refit("status")
    assert (code, err) == (1, "")
    assert lines_of(out)["champion"].startswith("v1 of 1")
    assert lines_of(out)["not known"].startswith(f"PREFECT_API_URL: expected a Prefect server at {NOWHERE}, found ")
