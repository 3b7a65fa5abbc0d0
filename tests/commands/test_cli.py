import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from refit.settings import PRESETS, SettingsTree, resolve_settings, walk_settings


def settings_of(output: str) -> dict[str, tuple]:
    return {name: (entry["value"], entry["origin"]) for name, entry in json.loads(output).items()}


def test_without_a_command_the_help_lists_the_commands(refit):
    for arguments in ((), ("--help",)):
        code, out, err = refit(*arguments)
        assert (code, err) == (0, "")
        assert all(command in out for command in ("train", "predict", "why", "settings", "models", "promote"))


def test_the_help_of_train_names_every_setting_with_its_sentence():
    command = [Path(sys.executable).with_name("refit"), "train", "--help"]
    out = subprocess.run(command, env={**os.environ, "COLUMNS": "200"}, capture_output=True, text=True, check=True).stdout
    assert [name for name, _ in walk_settings(SettingsTree()) if f"--{name}" not in out] == []
    assert "Passes over the train rows" in out


def test_retraining_that_would_ask_is_refused_where_no_server_can(refit, monkeypatch):
    from refit.flows import approval

    monkeypatch.setattr(approval.PREFECT_API_URL, "value", lambda: None)
    code, out, err = refit("retrain", "--promotion.mode", "ask")
    assert (code, out) == (2, "")
    assert err == (
        "error: promotion.mode: expected a Prefect server, because `ask` asks on its pages, found none;"
        " start one and set PREFECT_API_URL, or set `auto` or `never`\n"
    )


def test_the_working_directory_is_not_on_the_import_path(refit):
    refit("settings")
    assert not {"", str(Path.cwd())} & set(sys.path)


def test_a_time_zone_that_no_clock_has_is_refused_before_anything_starts(refit, monkeypatch):
    monkeypatch.setenv("TZ", "UTC+99")
    time.tzset()
    try:
        code, out, err = refit("train")
    finally:
        monkeypatch.undo()
        time.tzset()
    assert (code, out) == (2, "")
    assert err == "error: TZ: expected a zone such as Europe/Berlin, found 'UTC+99', too far from UTC; correct it\n"


def test_settings_prints_every_setting_with_its_default(refit, monkeypatch):
    monkeypatch.delenv("REFIT_TRAINING__BASELINE")
    code, out, err = refit("settings", "--json")
    assert (code, err) == (0, "")
    assert settings_of(out) == {
        name: (value, "preset notebook" if name in PRESETS["notebook"] else "default")
        for name, value in walk_settings(resolve_settings()[0])
    }


def test_settings_shows_values_as_they_are_whatever_they_hold(refit):
    code, out, _ = refit("settings", "--data.target", "[/red]\x1b[2J\u202e")
    assert code == 0
    assert r'"[/red]\u001b[2J\u202e"' in out


def test_settings_says_where_each_value_comes_from(refit, monkeypatch):
    Path("refit.toml").write_text("[optimizer]\nlr = 0.1\nmomentum = 0.5\n[training]\npatience = 4\n")
    Path(".env").write_text("REFIT_OPTIMIZER__MOMENTUM=0.6\n")
    monkeypatch.setenv("REFIT_SEED", "7")
    _, out, _ = refit("settings", "--json", "--loader.batch_size", "16")
    found = settings_of(out)
    assert found["optimizer.lr"] == (0.1, "refit.toml")
    assert found["optimizer.momentum"] == (0.6, ".env")
    assert found["seed"] == (7, "environment")
    assert found["loader.batch_size"] == (16, "command line")
    assert found["training.patience"] == (4, "refit.toml")
    assert found["data.target"] == ("y", "default")
    _, out, _ = refit("settings", "--loader.batch_size", "16")
    rows = {line.split("│")[1].strip(): line for line in out.splitlines() if line.startswith("│")}
    assert "environment (REFIT_SEED)" in rows["seed"]
    assert "command line" in rows["loader.batch_size"]


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (("--optimizer.lr", "0.25"), "optimizer.lr", 0.25),
        (("--optimizer.lr=0.25",), "optimizer.lr", 0.25),
        (("--loader.drop_last", "false"), "loader.drop_last", False),
        (("--loader.no-drop_last",), "loader.drop_last", False),
        (("--loader.drop_last", "true"), "loader.drop_last", True),
        (("--model.hidden_sizes", "[64, 32]"), "model.hidden_sizes", [64, 32]),
        (("--model.hidden_sizes", "[64]"), "model.hidden_sizes", [64]),
        (("--model.hidden_sizes", "[]"), "model.hidden_sizes", []),
        (("--data.features", '["a", "b,c"]'), "data.features", ["a", "b,c"]),
        (("--data.kinds", '{"zip code": "category"}'), "data.kinds", {"zip code": "category"}),
        (("--data.null_values", '["", "-"]'), "data.null_values", ["", "-"]),
        (("--data.target", "-1"), "data.target", "-1"),
        (("--data.source", "a=b.csv"), "data.source", "a=b.csv"),
        (("--name", "penguins"), "name", "penguins"),
        (("--seed", "3"), "seed", 3),
        (("--training.patience", "none"), "training.patience", None),
        (("--training.patience", "None"), "training.patience", None),
        (("--model.factory", "networks:build"), "model.factory", "networks:build"),
        (("--store.url", "s3://bucket/store"), "store.url", "s3://bucket/store"),
    ],
)
def test_a_flag_gives_its_setting(refit, arguments, name, value):
    Path("refit.toml").write_text("[training]\npatience = 4\n[loader]\ndrop_last = true\n")
    code, out, err = refit("settings", "--json", *arguments)
    assert (code, err) == (0, "")
    assert settings_of(out)[name] == (value, "command line")


def test_a_flag_leaves_the_rest_of_its_section_to_weaker_sources(refit):
    Path("refit.toml").write_text("[optimizer]\nmomentum = 0.5\n")
    _, out, _ = refit("settings", "--json", "--optimizer.lr", "0.25")
    assert settings_of(out)["optimizer.momentum"] == (0.5, "refit.toml")
    assert settings_of(out)["optimizer.name"] == ("sgd", "preset notebook")


def test_a_named_settings_file_is_read(refit):
    Path("other.toml").write_text("seed = 9\n")
    _, out, _ = refit("settings", "--json", "--settings", "other.toml")
    assert settings_of(out)["seed"] == (9, "other.toml")


@pytest.mark.parametrize("command", ["train", "retrain", "predict"])
@pytest.mark.parametrize(("name", "found"), [("empty.csv", "found an empty file"), ("missing.csv", "found nothing there")])
def test_a_file_that_is_empty_or_missing_is_refused_before_anything_starts(refit, monkeypatch, command, name, found):
    monkeypatch.setattr("refit.commands.local_run.run_locally", None)
    Path("empty.csv").touch()
    scoring = ("toy", name, "--output", "scores.parquet")
    code, out, err = refit(command, *(scoring if command == "predict" else ("--data.source", name)))
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"error: .*{name}: expected .*, {found}; .*\n", err)


def test_a_dry_run_shows_what_is_made_of_the_table(refit):
    Path("rows.csv").write_text("x,k,y\n" + "1,u,a\n2,v,b\n" * 20)
    code, out, err = refit("train", "--dry-run", "--data.source", "rows.csv")
    assert (code, err) == (0, "")
    assert "rows.csv: 40 rows; 3 columns, as 4 inputs" in out
    kinds = [line.split()[:2] for line in out.splitlines() if line[:2] in ("x ", "k ", "y ")]
    assert kinds == [["x", "number"], ["k", "category"], ["y", "target"]]


def test_a_forecast_is_printed_as_json(refit):
    Path("rows.csv").write_text("x,k,y\n" + "1,u,a\n2,v,b\n" * 20)
    found = [
        json.loads(refit(*command, "--json", "--data.source", "rows.csv")[1]) for command in (("why",), ("train", "--dry-run"))
    ]
    assert found[0]["steps"][0] == {"step": "build data set", "is_done": False, "because": ["nothing was run before"]}
    assert found[1] == {"steps": found[0]["steps"], "table": found[1]["table"]}
    assert (found[1]["table"]["source"], found[1]["table"]["rows"]) == ("rows.csv", 40)


@pytest.mark.parametrize("command", [("why",), ("train", "--dry-run")])
def test_a_forecast_refuses_columns_that_are_not_there(refit, command):
    Path("rows.csv").write_text("x,y\n" + "1,a\n2,b\n" * 20)
    code, _, err = refit(*command, "--data.source", "rows.csv", "--data.group_column", "shop")
    assert code == 2
    assert "data.group_column: expected a column of rows.csv, found no `shop` among `x`, `y`" in err


def test_a_file_whose_name_begins_with_a_dash_is_scored_once_it_is_no_option(refit):
    _, _, err = refit("predict", "toy", "-rf.csv", "--output", "scores.parquet")
    assert err == "error: -rf.csv: expected an option or an argument, found neither; write a file of this name as `./-rf.csv`\n"


@pytest.mark.parametrize("command", ["settings", "train", "why"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--optimizer.lrr", "1"), "--optimizer.lrr"),
        (("--optimizer.lr", "fast"), "optimizer.lr: expected a number of more than 0 and less than 1e+38, found 'fast'; change it"),
        (("--optimizer.lr", "-1"), "optimizer.lr: expected a number of more than 0 and less than 1e+38, found '-1'; change it"),
        (("--model.hidden_sizes", "[0]"), "model.hidden_sizes: expected a whole number of at least 1, found 0; change it"),
        (("--loader.drop_last", "maybe"), "loader.drop_last: expected true or false, found 'maybe'; change it"),
        (("--data.val", "14", "d"), "expected no more arguments, found 'd'; put a value that contains spaces in quotes"),
        (("--model.hidden_sizes", "[16"), "model.hidden_sizes"),
        (("--model.activation", "softsign"), "model.activation"),
        (("--loader.drop_last", "perhaps"), "loader.drop_last"),
        (("--settings", "absent.toml"), "--settings: expected a TOML file, found no file absent.toml; check the path"),
        (("--optimizer.lr",), "--optimizer.lr"),
        (("stray",), "stray"),
    ],
)
def test_a_bad_argument_exits_with_two_and_one_line_that_names_it(refit, command, arguments, message):
    code, out, err = refit(command, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not Path("refit-store").exists()


def test_a_misspelt_flag_is_answered_with_the_right_one(refit):
    assert "Did you mean --optimizer.lr?" in refit("settings", "--optimizer.lrr", "1")[2]


def test_an_unknown_command_exits_with_two(refit):
    code, out, err = refit("forget")
    assert (code, out) == (2, "")
    assert err.startswith('error: Unknown command "forget".')


def test_bad_values_of_other_sources_exit_with_two_and_name_the_source(refit, monkeypatch):
    monkeypatch.setenv("REFIT_OPTIMIZER__LR", "0")
    Path("refit.toml").write_text("[training]\nepochs = 3\n")
    code, out, err = refit("train")
    assert (code, out) == (2, "")
    assert "error: optimizer.lr (from environment): expected a number of more than 0 and less than 1e+38, found '0'" in err
    assert "error: training.epochs (from refit.toml): unknown setting; did you mean `training.num_epochs`?\n" in err


def test_settings_that_contradict_one_another_exit_with_two(refit):
    code, _, err = refit("settings", "--optimizer.name", "adam", "--optimizer.momentum", "0.9")
    assert (code, err) == (
        2,
        "error: optimizer.momentum: only sgd and rmsprop have it, found adam; leave it 0, or take one of these\n",
    )


def test_an_unknown_protocol_of_the_store_is_refused(refit):
    code, _, err = refit("models", "--store.url", "nosuch://x")
    assert code != 0
    assert err.startswith("error: store.url: expected a folder or an fsspec URL, found 'nosuch://x'")


def steps_of(output: str) -> dict[str, tuple[str, str]]:
    """The rows of a table of steps: what is done, and why not."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if line.startswith("│")]
    return {step: (state, because) for step, state, because in rows}


@pytest.mark.parametrize("command", [("why",), ("train", "--dry-run")], ids=["why", "dry run"])
def test_in_an_empty_store_why_says_that_nothing_was_run_and_runs_nothing(refit, command):
    code, out, err = refit(*command)
    assert (code, err) == (0, "")
    assert steps_of(out) == {
        "build data set": ("to do", "nothing was run before"),
        "train epochs 1 to 3": ("to do", "nothing was run before"),
        "evaluate and save": ("to do", "the weights will change"),
    }
    assert not Path("refit-store").exists()


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("command", [("why",), ("train", "--dry-run")], ids=["why", "dry run"])
def test_after_a_run_why_says_what_is_done_and_what_has_changed(refit, command):
    from refit.flows.training import train

    train()
    before = {path: path.read_bytes() for path in Path("refit-store").rglob("*") if path.is_file()}
    code, out, err = refit(*command)
    assert (code, err) == (0, "")
    steps = ["build data set", "train epochs 1 to 3", "evaluate train", "evaluate test", "save"]
    assert steps_of(out) == {step: ("done", "") for step in steps}
    code, out, err = refit(*command, "--optimizer.lr", "0.5", "--loader.drop_last", "false")
    assert (code, err) == (0, "")
    found = [line for line in out.splitlines() if "->" in line]
    assert [line.split("│")[3].strip() for line in found] == ["optimizer.lr: 1.0 -> 0.5", "loader.drop_last: True -> False"]
    assert steps_of(refit(*command, "--training.num_epochs", "5")[1])["train epochs 4 to 5"] == ("to do", "not run yet")
    assert {path: path.read_bytes() for path in Path("refit-store").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("command", [("why",), ("train", "--dry-run")], ids=["why", "dry run"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data.source", "absent.csv"), "absent.csv: expected a file, folder or glob, found nothing there"),
        (("--optimizer.lr", "0"), "optimizer.lr: expected a number of more than 0"),
        (("--model.factory", "absent_networks:build"), "model.factory: expected a module with Python source"),
        (("--compute.device", "cuda:99"), "compute.device: expected a device of this machine"),
    ],
    ids=["source", "lr", "factory", "device"],
)
def test_why_exits_with_two_where_a_run_would(refit, command, arguments, message):
    code, out, err = refit(*command, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_reader_that_has_seen_enough_gets_no_traceback():
    """As in `refit settings | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [Path(sys.executable).with_name("refit"), "settings", "--json"]
    finished = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert "Traceback" not in finished.stderr


def test_what_starts_the_server_of_a_run_imports_nothing_slow_before():
    script = (
        "import sys; from refit.commands import local_run; print(*({'torch', 'prefect', 'polars', 'pyarrow'} & set(sys.modules)))"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (finished.stdout, finished.stderr) == ("\n", "")


def test_only_commands_that_compute_import_torch_and_prefect():
    """The other commands answer at once."""
    script = (
        "import sys; sys.argv = ['refit', 'settings']\n"
        "from refit.commands import cli\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'prefect'} & set(sys.modules), 'slow imports'\n"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_the_watcher_of_signals_ends_without_a_word(monkeypatch):
    """A run that fails early closes its pipe while it is read."""
    from refit.commands import local_run

    failures: list[object] = []
    monkeypatch.setattr(threading, "excepthook", failures.append)
    for _ in range(300):
        with local_run._stopping_soon("go on with"):
            pass
    time.sleep(0.1)
    assert failures == []


def test_the_first_model_without_a_baseline_is_shown_alone(refit, monkeypatch):
    from refit.commands import local_run
    from refit.refs import RetrainingResult

    scores = {"toy@v1": {"negative loss": -0.25, "megabytes": None}}
    result = RetrainingResult(outcome="promoted", reason="the first of its name", champion="toy@v1", scores=scores)
    monkeypatch.setattr(local_run, "run_locally", lambda *_, **__: result)
    code, out, _ = refit("retrain")
    assert code == 0
    assert "difference" not in out
    assert re.search(r"negative loss\s+│\s+-0\.2500", out)
