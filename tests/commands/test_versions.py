import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import onnxruntime
import pytest
import torch
from prefect.settings import PREFECT_API_URL, temporary_settings

from refit.registry.ledger import load_ledger
from refit.registry.versions import add_version, load_part, move_alias, read_alias
from refit.serving.saved_model import load_version
from refit.store.store import Store
from refit.tables.manifest import load_test_rows

METRICS = {"num_rows": 12, "accuracy": 0.5, "loss": 0.25, "roc_auc": None, "calibration_error": 0.125}
MANIFEST = {
    "signature": {"columns": [], "target": {"name": "y", "classes": ["no", "yes"]}},
    "columns": [{"name": "size", "kind": "numeric"}, {"name": "colour", "kind": "categorical"}],
    "splits": {"train": {"rows": 70}, "test": {"rows": 30}},
    "test_rows": {"digest": "1" * 64},
    "source_digest": "2" * 64,
}


def add_model(
    name: str, accuracy: float, settings: dict | None = None, manifest: dict | None = None, metrics: dict | None = None
) -> None:
    contents = {
        "metrics.json": {"train": {**METRICS, "accuracy": 1.0}, "test": {**METRICS, "accuracy": accuracy, **(metrics or {})}},
        "settings.json": {"name": name, "seed": 0, "model": {"hidden_sizes": [16, 16]}, **(settings or {})},
        "manifest.json": {**MANIFEST, **(manifest or {})},
    }
    files = {file: json.dumps(content).encode() for file, content in contents.items()}
    files["card.md"] = f"# {name}\n\n| ü | 猫 |\n".encode()
    digests = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
    record = {"created": "2026-01-02T03:04:05+00:00", "weights_digest": "abcdef0123456789", "files": digests}
    add_version(Store("refit-store"), name, files, record)


def rows_of(output: str) -> list[list[str]]:
    """Cells of all tables that were printed, without their headers."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if line.startswith("│")]


def test_an_empty_store_has_no_models(refit):
    code, out, err = refit("models")
    assert (code, out, err) == (0, "", "no models in refit-store\n")


def test_models_lists_every_version_with_its_scores_and_aliases(refit):
    for name, accuracy in (("b", 0.5), ("a", 0.75), ("a", 0.8765), ("a", 0.5)):
        add_model(name, accuracy)
    store = Store("refit-store")
    for alias, version in (("champion", 2), ("staging", 2), ("old", 1)):
        move_alias(store, "a", version, expected=None, why="", alias=alias)
    code, out, err = refit("models")
    assert (code, err) == (0, "")
    assert [row[:2] for row in rows_of(out)] == [["a@v1", "old"], ["a@v2", "champion, staging"], ["a@v3", ""], ["b@v1", ""]]
    assert rows_of(out)[1][2:] == ["2026-01-02 03:04", "12 test rows", "0.8765", "0.2500"]


def test_on_a_narrow_terminal_versions_can_still_be_told_apart(refit, monkeypatch):
    name = "penguins-of-the-palmer-archipelago"
    for _ in range(2):
        add_model(name, 0.5)
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = refit("models")
    assert f"{name}@v1" in out
    assert f"{name}@v2" in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("file", ["v1/metrics.json", "ledger/000001.json"])
def test_models_lists_what_is_whole_and_names_what_is_damaged(refit, file):
    add_model("a", 0.75)
    add_model("a", 0.8)
    add_model("b", 0.5)
    move_alias(Store("refit-store"), "a", 2, expected=None, why="")
    Path(f"refit-store/models/a/{file}").write_text("{")
    code, out, err = refit("models")
    assert code == 1
    assert [row[0] for row in rows_of(out)] == ["a@v1", "a@v2", "b@v1"]
    assert re.fullmatch(rf"(?s)error: .*models/a/{file}: expected .*; put it back from a backup.*\n", err)


def test_show_prints_the_newest_card_or_that_of_a_version(refit):
    add_model("a", 0.75)
    add_model("a", 0.8)
    for reference, version in (("a", 2), ("a@v1", 1), ("a@2", 2)):
        code, out, err = refit("show", reference)
        assert (code, err) == (0, "")
        folder, *card = out.split("\n", 1)
        assert folder == str(Path(f"refit-store/models/a/v{version}").resolve())
        assert card[0].split() == ["a", "|", "ü", "|", "猫", "|"], "as text, not as Markdown"


def test_show_into_a_pipe_has_no_padding_no_colours_and_names_pictures_by_their_files(refit, monkeypatch):
    add_model("a", 0.75)
    Path("refit-store/models/a/v1/card.md").write_text("# a\n\n- **rows**: 7\n\n![loss by epoch](loss.png)\n")
    monkeypatch.setenv("COLUMNS", "30")
    _, out, _ = refit("show", "a")
    assert out.splitlines()[1:3] == ["", "              a"]
    assert out.splitlines()[3:] == ["", " • rows: 7", "", "loss by epoch: loss.png"]


def test_show_says_since_when_and_why_a_version_is_champion(refit):
    add_model("a", 0.75)
    add_model("a", 0.8)
    entry = move_alias(Store("refit-store"), "a", 1, expected=None, why="it is [bold] enough")
    for reference in ("a@champion", "a@v1"):
        out = refit("show", reference)[1]
        assert out.splitlines()[1:3] == [f"champion since {entry.at}, by {entry.who}: it is [bold] enough", ""]
    assert "champion" not in refit("show", "a")[1]


def test_show_of_a_model_that_is_not_there_exits_with_one_and_lists_those_there_are(refit):
    add_model("a", 0.75)
    code, out, err = refit("show", "b")
    assert (code, out) == (1, "")
    assert err == "error: b: expected a model in refit-store, found no 'b'; models there: a\n"
    code, _, err = refit("show", "a@v3")
    message = "a@v3: expected a version of 'a' in refit-store, found no v3; versions there: v1; aliases there: none;"
    message += " put v3 back from a backup, or take one of these"
    assert (code, err) == (1, f"error: {message}\n")
    code, _, err = refit("show", "a@champion")
    message = "found no champion; versions there: v1; aliases there: none; `refit promote a@v1` makes one"
    assert code == 1
    assert err.endswith(f"{message}\n")


def test_promote_and_rollback_move_the_champion_and_the_ledger_keeps_why(refit):
    for _ in range(3):
        add_model("a", 0.75)
    assert refit("promote", "a@v1", "--why", "the first") == (0, "a@champion: none -> v1\n", "")
    assert refit("promote", "a@3") == (0, "a@champion: v1 -> v3\n", "")
    assert refit("promote", "a@v2", "--alias", "staging") == (0, "a@staging: none -> v2\n", "")
    assert refit("promote", "a@staging", "--why", "tried for a week") == (0, "a@champion: v3 -> v2\n", "")
    assert refit("promote", "a@v2") == (0, "a@champion is v2 already\n", "")
    assert refit("rollback", "a", "--why", "it was worse") == (0, "a@champion: v2 -> v3\n", "")
    assert refit("rollback", "a") == (0, "a@champion: v3 -> v1\n", "")
    found = [(entry.action, entry.alias, entry.before, entry.after, entry.why) for entry in load_ledger(Store("refit-store"), "a")]
    assert found == [
        ("promote", "champion", None, 1, "the first"),
        ("promote", "champion", 1, 3, "promoted by hand"),
        ("promote", "staging", None, 2, "promoted by hand"),
        ("promote", "champion", 3, 2, "tried for a week"),
        ("rollback", "champion", 2, 3, "it was worse"),
        ("rollback", "champion", 3, 1, "rolled back by hand"),
    ]
    code, out, err = refit("rollback", "a")
    assert (code, out) == (1, "")
    assert err == "error: a@champion: expected a version before the present one, found only v1; promote another version\n"


def test_the_server_is_told_of_another_champion_and_of_no_other_alias(refit, await_events):
    for _ in range(2):
        add_model("told-by-hand", 0.75)
    refit("promote", "told-by-hand@v1", "--alias", "staging")
    assert refit("promote", "told-by-hand@v1")[2] == ""
    refit("promote", "told-by-hand@v1")
    refit("promote", "told-by-hand@v2", "--why", "a month of rows")
    assert refit("rollback", "told-by-hand")[2] == ""
    events = await_events("refit.model.told-by-hand", 3)
    assert [(event.event, event.payload["before"], event.payload["after"], event.payload["reason"]) for event in events] == [
        ("refit.champion.promoted", None, "told-by-hand@v1", "promoted by hand"),
        ("refit.champion.promoted", "told-by-hand@v1", "told-by-hand@v2", "a month of rows"),
        ("refit.champion.rolled-back", "told-by-hand@v2", "told-by-hand@v1", "rolled back by hand"),
    ]


@pytest.mark.parametrize("listens", [False, True], ids=["nobody listens", "nobody answers"])
def test_a_champion_is_promoted_though_the_server_is_away_and_nobody_waits_long(refit, monkeypatch, listens):
    monkeypatch.setattr("refit.server.events.SECONDS_TO_TELL", 0.5)
    add_model("a", 0.75)
    with socket.socket() as away:
        away.bind(("127.0.0.1", 0))
        if listens:
            away.listen()
        url = f"http://127.0.0.1:{away.getsockname()[1]}/api"
        started = time.monotonic()
        with temporary_settings({PREFECT_API_URL: url}):
            code, out, err = refit("promote", "a@v1")
    assert (code, out) == (0, "a@champion: none -> v1\n")
    assert re.fullmatch(
        rf"PREFECT_API_URL: expected a Prefect server at {url} that takes an event, found .+;"
        " the alias was moved, but the server was not told\n",
        err,
    )
    assert time.monotonic() - started < 5
    assert read_alias(Store("refit-store"), "a") == 1


@pytest.mark.usefixtures("toy")
def test_a_reason_does_not_move_the_terminal(refit):
    refit("promote", "toy@v1", "--why", "\x1b[2J[red]it is\nbetter")
    for command in ("show", "status"):
        out = refit(command, "toy")[1]
        assert r"\x1b[2J[red]it is\nbetter" in out
        assert "\x1b" not in out


def test_a_torn_entry_is_named_and_can_be_done_without(refit):
    for number in (1, 2):
        add_model("a", 0.75)
        refit("promote", f"a@v{number}")
    torn = Path("refit-store/models/a/ledger/000002.json")
    torn.write_bytes(torn.read_bytes()[:40])
    code, out, err = refit("show", "a@v1")
    assert code == 1
    assert " a\n" in out
    assert re.fullmatch(r"error: .*ledger/000002\.json: expected entry 2 of the ledger, found .*; put .* `refit repair a`\n", err)
    assert refit("status", "a")[0] == 1
    assert refit("repair", "a") == (0, "a: lost entries: 2\na@champion: v1 -> v2\n", "")
    assert refit("repair", "a") == (0, "a: no entry is lost\n", "")
    assert "champion since" in refit("show", "a@champion")[1]
    assert refit("rollback", "a") == (0, "a@champion: v2 -> v1\n", "")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("promote", "a"), 2, "a: expected a version to promote, found a name alone; name one, such as a@v1"),
        (("promote", "a@"), 2, "a@: expected a version to promote, found a name alone; name one, such as a@v1"),
        (("promote", "a@v9"), 1, "a@v9: expected a version of 'a' in refit-store, found no v9; versions there: v1"),
        (("promote", "b@v1"), 1, "b@v1: expected a model in refit-store, found no 'b'; models there: a"),
        (("promote", "a@v1", "--alias", "v2"), 2, "a@v2: expected an alias such as `champion`, found 'v2'"),
        (("promote", "a@v1", "--because", "x"), 2, "Unknown option: --because"),
        (("promote", "a@v1", "--optimizer.lr", "1"), 2, "Unknown option: --optimizer.lr"),
        (("rollback", "a"), 1, "a@champion: expected a version before the present one, found that it was never set"),
        (("rollback", "a@v1"), 2, "a@v1: expected the name of a model, found a version; leave out `@`"),
        (("promote", "../a@v1"), 2, "expected the name of a model, found '../a'; use a-z, 0-9, _ and -"),
        (("show", "models/a@v1"), 2, "expected the name of a model, found 'models/a'"),
        (("rollback", "../models/a"), 2, "expected the name of a model, found '../models/a'"),
        (("rollback", "b"), 1, "b: expected a model in refit-store, found no 'b'"),
        (("diff", "a@v1"), 2, 'Command "diff" parameter OTHER requires an argument'),
        (("diff", "a@v1", "a@v2"), 1, "a@v2: expected a version of 'a'"),
        (("export", "a", "--format", "onnx", "--output", "a.onnx"), 1, "a@champion: expected a version of 'a'"),
        (("export", "a@v1", "--format", "pickle", "--output", "a.onnx"), 2, "format"),
        (("export", "a@v1", "--format", "onnx"), 2, "--output"),
    ],
)
def test_a_mistake_exits_with_one_line_and_moves_nothing(refit, arguments, code, message):
    add_model("a", 0.75)
    found, out, err = refit(*arguments)
    assert (found, out) == (code, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert load_ledger(Store("refit-store"), "a") == []
    assert [path.name for path in Path().iterdir()] == ["refit-store"]


def test_a_damaged_version_is_not_promoted(refit):
    add_model("a", 0.75)
    add_model("a", 0.8)
    refit("promote", "a@v1")
    Path("refit-store/models/a/v2/settings.json").write_text("{}")
    code, out, err = refit("promote", "a@v2")
    assert (code, out) == (1, "")
    assert re.fullmatch(r"error: .*v2/settings\.json: expected bytes with the digest in version\.json, found others; .*\n", err)
    assert read_alias(Store("refit-store"), "a") == 1


def test_diff_prints_settings_data_and_metrics_side_by_side(refit):
    add_model("a", 0.75, metrics={"roc_auc": 0.9})
    columns = [{"name": "size", "kind": "categorical"}, {"name": "[red] weight", "kind": "numeric"}]
    splits = {"train": {"rows": 80}, "val": {"rows": 5}, "test": {"rows": 30}}
    signature = {"target": {"name": "y", "classes": ["no", "perhaps"]}}
    manifest = {"columns": columns, "splits": splits, "signature": signature, "source_digest": "3" * 64}
    settings = {"seed": 7, "model": {"hidden_sizes": [32]}, "schedule": {"max_delay_seconds": 60.0}}
    add_model("a", 0.8, settings, manifest)
    code, out, err = refit("diff", "a@v1", "a@v2")
    assert (code, err) == (0, "")
    assert rows_of(out) == [
        ["seed", "0", "7"],
        ["model.hidden_sizes", "[16, 16]", "[32]"],
        ["schedule.max_delay_seconds", "-", "60.0"],
        ["train rows", "70", "80"],
        ["test rows", "30", "30"],
        ["val rows", "-", "5"],
        ["class yes", "there", "-"],
        ["class perhaps", "-", "there"],
        ["column size", "numeric", "categorical"],
        ["column colour", "categorical", "-"],
        ["column [red] weight", "-", "numeric"],
        ["digest of the source", "222222222222", "333333333333"],
        ["train", "accuracy", "1.0000", "1.0000", "+0.0000"],
        ["train", "loss", "0.2500", "0.2500", "+0.0000"],
        ["train", "roc_auc", "-", "-", "-"],
        ["train", "calibration_error", "0.1250", "0.1250", "+0.0000"],
        ["test", "accuracy", "0.7500", "0.8000", "+0.0500"],
        ["test", "loss", "0.2500", "0.2500", "+0.0000"],
        ["test", "roc_auc", "0.9000", "-", "-"],
        ["test", "calibration_error", "0.1250", "0.1250", "+0.0000"],
    ]
    assert refit("diff", "a@v2", "a")[1].startswith("setting: no difference\n")


@pytest.mark.usefixtures("toy")
def test_versions_that_are_really_saved_have_all_that_diff_and_models_read(refit):
    assert refit("diff", "toy", "toy@v1")[0] == 0
    assert [row[0] for row in rows_of(refit("models")[1])] == ["toy@v1"]


@pytest.mark.parametrize(("format", "output"), [("onnx", "toy.onnx"), ("torch", "toy.pt2")])
def test_export_writes_the_champion_and_says_how_close_it_is_on_the_test_rows(refit, toy, format, output):
    move_alias(toy, "toy", 1, expected=None, why="")
    num_rows = load_part(toy, "toy", 1, "manifest")["splits"]["test"]["rows"]
    code, out, err = refit("export", "toy", "--format", format, "--output", output)
    assert (code, err) == (0, "")
    match = re.fullmatch(
        rf"exported toy@v1: {output}\nlargest difference of a probability on its {num_rows} test rows: (\S+)\n", out
    )
    assert 0 <= float(match[1]) <= 1e-5
    if format == "onnx":
        assert onnxruntime.InferenceSession(output).get_modelmeta().custom_metadata_map["model"] == "toy@v1"
    else:
        torch.export.load(output)


@pytest.mark.usefixtures("toy")
def test_export_writes_nothing_into_the_store(refit):
    Path("link").symlink_to("refit-store")
    for folder in ("refit-store/models/toy/v1", "link", "x/../refit-store"):
        code, _, err = refit("export", "toy@v1", "--format", "torch", "--output", f"{folder}/toy.pt2")
        assert code == 2
        assert f"error: --output: expected a file outside of the store, found {folder}/toy.pt2 in refit-store; write it" in err
    assert not [*Path("refit-store").rglob("*.pt2")]


@pytest.mark.usefixtures("toy")
def test_export_refuses_another_ending_and_leaves_nothing(refit):
    assert refit("export", "toy@v1", "--format", "torch", "--output", "toy.onnx") == (
        2,
        "",
        "error: --output: expected a file ending in .pt2, found toy.onnx; rename it\n",
    )
    assert sorted(path.name for path in Path().iterdir()) == ["refit-store"]


def make_old(folder: str) -> None:
    for path in [*Path(folder).rglob("*"), Path(folder)]:
        os.utime(path, (0, 0))


DAMAGES = {
    "no record": lambda folder: (folder / "version.json").unlink(),
    "empty record": lambda folder: (folder / "version.json").write_text("{}"),
    "garbage": lambda folder: (folder / "version.json").write_bytes(b"\xff\x00"),
    "a list": lambda folder: (folder / "version.json").write_text("[1]"),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "another manifest": lambda folder: (folder / "manifest.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_gc_goes_on_beside_a_damaged_version_and_spares_what_that_may_need(refit, toy, damage):
    damage(Path(toy.root, "models/toy/v1"))
    add_model("a", 0.75)
    stray = toy.put(b"no version has it")
    toy.write(f"results/{stray}.json", b"{}")
    for folder in ("objects", "results"):
        make_old(f"refit-store/{folder}")
    objects = [path for path in Path("refit-store/objects").rglob("*") if path.is_file()]
    code, out, err = refit("gc")
    assert (code, "Traceback" in err) == (1, False)
    assert out.startswith("removed 1 files")
    remedy = "until then, or until you remove the folder of toy@v1, no object is removed"
    assert re.search(rf"error: .*toy/v1.*: expected .*; {remedy}\n", err)
    assert all(path.exists() for path in objects)
    shutil.rmtree("refit-store/models/toy/v1")
    shutil.rmtree("refit-store/models/a/v1")
    assert refit("gc")[:2] == (0, f"removed {len(objects)} files, 0.0 MB, of refit-store\n")


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_models_and_show_name_a_damaged_champion_and_fail(refit, toy, damage):
    move_alias(toy, "toy", 1, expected=None, why="")
    add_model("whole", 0.75)
    damage(Path(toy.root, "models/toy/v1"))
    code, out, err = refit("models")
    assert code == 1
    assert [row[:3:2] for row in rows_of(out)] == [["toy@v1", "damaged"], ["whole@v1", "2026-01-02 03:04"]]
    assert re.fullmatch(r"error: .*toy/v1/\w+\.json: expected .*; put it back from a backup, or take another version\n", err)
    code, out, err = refit("show", "toy")
    assert code == 1
    assert "\n     toy\n" in re.sub("  +", "     ", out)
    assert re.fullmatch(r"error: .*toy/v1/\w+\.json: expected .*; put it back from a backup, or take another version\n", err)


@pytest.mark.parametrize("others", [0, 1])
def test_models_and_status_name_a_champion_whose_folder_is_gone(refit, others):
    for _ in range(1 + others):
        add_model("a", 0.75)
    move_alias(Store("refit-store"), "a", 1, expected=None, why="")
    shutil.rmtree("refit-store/models/a/v1")
    code, out, err = refit("models")
    assert (code, rows_of(out)[0][:3]) == (1, ["a@v1", "champion", "lost"])
    assert re.match(r"error: a@v?1: expected a (version|model) .*, found no ", err)
    code, out, _ = refit("status")
    assert (code, "champion" in out, "expected a " in out) == (1, True, True)


def test_a_damaged_champion_is_not_said_to_be_the_champion_already(refit):
    add_model("a", 0.75)
    assert refit("promote", "a@v1")[0] == 0
    assert refit("promote", "a@v1") == (0, "a@champion is v1 already\n", "")
    Path("refit-store/models/a/v1/card.md").write_text("other")
    code, out, err = refit("promote", "a@v1")
    assert (code, out) == (1, "")
    assert re.match(r"error: .*a/v1/card\.md: expected bytes with the digest in version\.json, found others; put it back", err)


def test_models_names_a_version_with_other_scores_than_those_it_shows(refit):
    add_model("a", 0.75)
    Path("refit-store/models/a/v1/metrics.json").write_text('{"test": {"accuracy": "high"}}')
    code, out, err = refit("models")
    assert (code, rows_of(out)[0][2]) == (1, "damaged")
    assert re.fullmatch(r"error: .*a/v1: expected the record and scores of a version, found others; put it back .*\n", err)


def test_gc_removes_what_writers_left_half_written(refit, toy):
    folder = Path(toy.root, "tmp")
    for name in ("another-host-1-00000000", "young-host-1-00000000", f"{socket.gethostname()}-{os.getpid()}-00000000"):
        (folder / name).mkdir(parents=True)
        (folder / name / "model.pt").write_bytes(b"1")
        if not name.startswith("young"):
            make_old(str(folder / name))
    assert "tmp/another-host-1-00000000\n" in refit("gc", "--dry-run")[1]
    assert refit("gc")[0] == 0
    assert {path.name for path in folder.iterdir()} == {"young-host-1-00000000", f"{socket.gethostname()}-{os.getpid()}-00000000"}


def test_gc_spares_the_test_rows_that_exports_are_checked_on(refit, toy):
    make_old("refit-store/objects")
    assert refit("gc")[0] == 0
    manifest = load_version(toy, "toy", 1).manifest
    assert load_test_rows(manifest, toy).height == manifest.splits["test"].rows


def test_the_store_of_another_folder_is_looked_into(refit):
    add_model("a", 0.75)
    Path("refit-store").rename("other")
    assert "a@v1" in refit("models", "--store.url", "other")[1]
    assert " a\n" in refit("show", "a", "--store.url", "other")[1]


@pytest.mark.parametrize("command", [("models",), ("show", "a"), ("promote", "a@v1"), ("rollback", "a")])
def test_a_store_that_cannot_be_read_exits_with_one_and_names_it(refit, command):
    Path("file").write_text("")
    code, out, err = refit(*command, "--store.url", "file/store")
    assert (code, out) == (1, "")
    assert "file/store" in err
    assert "Traceback" not in err


def test_none_of_these_commands_imports_torch_or_prefect():
    """They answer at once."""
    script = (
        "import sys\n"
        "from refit.commands import cli\n"
        "for line in sys.argv[1:]:\n"
        "    sys.argv = ['refit', *line.split()]\n"
        "    try:\n        cli.main()\n    except SystemExit as exited:\n        print('code:', exited.code)\n"
        "print('slow imports:', *({'torch', 'prefect', 'polars', 'pyarrow'} & set(sys.modules)))\n"
    )
    add_model("a", 0.5)
    commands = ["--help", "models", "promote a@v1", "show a@champion", "diff a a@champion", "rollback a"]
    finished = subprocess.run([sys.executable, "-c", script, *commands], capture_output=True, text=True)
    assert re.findall("code: .*", finished.stdout) == [f"code: {code}" for code in (None, 0, 0, 0, 0, 1)]
    assert finished.stdout.splitlines()[-1] == "slow imports:"
