import hashlib
import json
import logging
import re
import sys
from pathlib import Path

import polars as pl
import pytest
from prefect.exceptions import ParameterTypeError

from refit.errors import DataError, RefitError, SettingsError, StoreError
from refit.flows.prediction import predict
from refit.refs import Prediction
from refit.registry.versions import move_alias
from refit.serving.saved_model import load_version
from refit.settings import SettingsTree

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def source(rows) -> str:
    rows.write_csv("rows.csv")
    Path("file").write_text("")
    return "rows.csv"


def assert_scored(toy, rows: pl.DataFrame, output: str, keep: tuple[str, ...] = ()) -> None:
    """By `toy@v1`, to the bit."""
    model, scored = load_version(toy, "toy", 1), pl.read_parquet(output)
    assert scored.columns == [*keep, "class", "probability of no", "probability of yes", "model"]
    assert scored["class"].to_list() == model.predict(rows).tolist()
    assert scored.select("^probability.*$").to_numpy().tobytes() == model.predict_proba(rows).tobytes()
    assert set(scored["model"]) == {"toy@v1"}


def test_a_name_alone_is_scored_by_its_champion_and_the_result_is_small_json(toy, source, rows, caplog):
    with pytest.raises(
        StoreError, match=r"toy@champion: expected a version of 'toy' .* found no champion; versions there: v1; .*promote"
    ):
        predict("toy", source, "scored.parquet")
    move_alias(toy, "toy", 1, expected=None, why="")
    with caplog.at_level(logging.INFO):
        scored = predict("toy", source, "scored.parquet", ("number", "label"))
    assert_scored(toy, rows, "scored.parquet", ("number", "label"))
    assert (scored.model, scored.output, scored.num_rows) == ("toy@v1", "scored.parquet", 60)
    assert Prediction.model_validate_json(scored.model_dump_json()) == scored
    assert "model: toy@v1" in caplog.messages
    (line,) = (message for message in caplog.messages if message.startswith("scored"))
    assert re.fullmatch(r"scored 60 rows: \d+\.\d s, [\d,]+ rows/s", line)


@pytest.mark.usefixtures("toy")
def test_a_run_is_named_for_the_model_and_the_minute(source):
    state = predict("toy@v1", source, "scored.parquet", return_state=True)
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        run = client.read_flow_run(state.state_details.flow_run_id)
    assert run.name == f"predict toy@v1 {run.start_time:%Y-%m-%d %H:%M}"
    assert run.parameters["source"] == "rows.csv"


def test_the_form_asks_for_model_source_and_output_and_says_what_each_is():
    from prefect.utilities.callables import parameter_schema

    schema = parameter_schema(predict)
    assert schema.required == ["model", "source", "output"]
    assert list(schema.properties) == ["model", "source", "output", "keep", "settings", "strict", "changes"]
    assert schema.properties["keep"]["items"] == {"type": "string"}
    assert all(schema.properties[name]["description"] for name in schema.properties)


@pytest.mark.usefixtures("toy")
def test_the_store_comes_from_the_settings_or_else_from_the_environment(source, monkeypatch):
    Path("refit-store").rename("other")
    with pytest.raises(StoreError, match=r"expected a model in refit-store"):
        predict("toy@v1", source, "scored.parquet")
    assert predict("toy@v1", source, "scored.parquet", (), SettingsTree(store={"url": "other"})).num_rows == 60
    monkeypatch.setenv("REFIT_STORE__URL", "other")
    assert predict("toy@v1", source, "scored.parquet").num_rows == 60


BAD = {
    "empty today": (lambda rows: rows.clear(), (), DataError, r"rows\.csv: expected rows, found an empty table"),
    "a column lost": (
        lambda rows: rows.drop("size"),
        (),
        DataError,
        r"rows\.csv: expected column `size`, found `number`, `colour`, `is_new`, .*; add what is missing",
    ),
    "text among numbers": (
        lambda rows: rows.with_columns(size=pl.when(pl.col("number") == 40).then(pl.lit("big")).otherwise("size")),
        (),
        DataError,
        r"row 41 of .*rows\.csv, line 42, column `size`: expected a number, found 'big'; correct the value",
    ),
    "no such column to keep": (lambda rows: rows, ("numbr",), DataError, r"--keep: .* no `numbr` .*; did you mean `number`\?"),
}


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(("change", "keep", "error", "message"), BAD.values(), ids=BAD)
def test_bad_rows_fail_the_run_and_leave_yesterdays_scores(rows, change, keep, error, message):
    change(rows).write_csv("rows.csv")
    Path("scored.parquet").write_text("yesterday's")
    with pytest.raises(error, match=message):
        predict("toy@v1", "rows.csv", "scored.parquet", keep)
    assert Path("scored.parquet").read_text() == "yesterday's"
    assert sorted(path.name for path in Path().iterdir()) == ["refit-store", "rows.csv", "scored.parquet"]


def test_a_column_more_and_an_unseen_category_are_scored_and_yesterdays_scores_replaced(toy, rows):
    rows = rows.with_columns(colour=pl.lit("mauve"), extra=pl.lit("x"))
    rows.write_csv("rows.csv")
    Path("scored.parquet").write_text("yesterday's")
    predict("toy@v1", "rows.csv", "scored.parquet")
    assert_scored(toy, rows, "scored.parquet")


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        ("scored.csv", SettingsError, r"--output: expected a file ending in \.parquet, found scored\.csv; rename it"),
        (
            "refit-store/models/toy/v1/x.parquet",
            SettingsError,
            r"--output: expected a file outside of the store, found ",
        ),
        ("file/scored.parquet", RefitError, r"--output: expected a place that can be written, found file/scored\.parquet"),
    ],
)
def test_an_output_that_cannot_be_written_is_named(source, output, error, message):
    with pytest.raises(error, match=message):
        predict("toy@v1", source, output)


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (("https://key:s3cret@host/x.csv", "--output", "scored.parquet"), "SOURCE"),
        (("https://host/x.csv?Signature=s3cret", "--output", "scored.parquet"), "SOURCE"),
        (("rows.csv", "--output", "s3://key:s3cret@bucket/scored.parquet"), "--output"),
    ],
)
def test_the_command_refuses_a_secret_before_a_run_could_hold_it(refit, caplog, monkeypatch, arguments, where):
    monkeypatch.setattr("refit.commands.local_run.run_locally", lambda *_, **__: pytest.fail("a run was started"))
    code, out, err = refit("predict", "toy@v1", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {where}: expected a URL without a secret, found a user, a query or a fragment in ")
    assert "s3cret" not in err + caplog.text


def test_a_form_refuses_a_secret_too():
    from prefect.utilities.callables import parameter_schema

    patterns = [parameter_schema(predict).properties[name]["pattern"] for name in ("source", "output")]
    assert [pattern for pattern in patterns if re.search(pattern, "https://host/x.csv?Signature=s3cret")] == []
    assert all(re.search(pattern, "s3://bucket/x.parquet") for pattern in patterns)
    with pytest.raises(ParameterTypeError, match="source: Value error, expected a URL without a secret") as refused:
        predict("toy", "https://s3cret@host/x.csv", "scored.parquet")
    assert "s3cret" not in str(refused.value)


def test_the_factory_of_a_version_is_called_only_if_the_settings_name_it_or_trust_the_store(refit, toy, source):
    folder = Path(toy.root) / "models/toy/v1"
    settings, record = (json.loads((folder / f"{name}.json").read_text()) for name in ("settings", "version"))
    settings["model"]["factory"] = "flow_networks:build"
    (folder / "settings.json").write_text(json.dumps(settings))
    record["files"]["settings.json"] = hashlib.sha256((folder / "settings.json").read_bytes()).hexdigest()
    (folder / "version.json").write_text(json.dumps(record))
    Path("flow_networks.py").write_text(
        "from refit.models.mlp import build_mlp\nfrom refit.settings import ModelSettings\n\n\n"
        "def build(signature):\n    return build_mlp(signature, ModelSettings(hidden_sizes=[16, 16]))\n"
    )
    command = ("predict", "toy@v1", source, "--output", "scored.parquet")
    code, out, err = refit(*command)
    assert (code, out) == (2, "")
    assert "expected a version of the factory that model.factory names here, none, found one of `flow_networks:build`" in err
    assert "flow_networks" not in sys.modules
    assert refit(*command, "--trust")[0] == 0
    Path("refit.toml").write_text("model.factory = 'flow_networks:build'\n")
    assert refit(*command)[0] == 0
    assert refit("export", "toy@v1", "--format", "torch", "--output", "toy.pt2")[0] == 0
    Path("refit.toml").unlink()
    assert refit("export", "toy@v1", "--format", "torch", "--output", "toy.pt2")[0] == 2
    assert refit("export", "toy@v1", "--format", "torch", "--output", "toy.pt2", "--trust")[0] == 0


def test_the_command_prints_where_the_scores_are_and_progress_apart(refit, toy, source, rows):
    code, out, err = refit("predict", "toy@v1", source, "--output", "scored.parquet", "--keep", "number", "label")
    assert (code, out) == (0, "scored 60 rows with toy@v1: scored.parquet\n")
    assert re.fullmatch(r"model: toy@v1\nscored 60 rows: \d+\.\d s, [\d,]+ rows/s\n", err)
    assert_scored(toy, rows, "scored.parquet", ("number", "label"))
    code, out, _ = refit("predict", "toy@v1", source, "--output", "scored.parquet", "--json")
    assert code == 0
    assert json.loads(out).keys() == {"model", "output", "num_rows", "seconds", "deviations"}
    assert json.loads(out)["deviations"] == []


@pytest.mark.usefixtures("toy")
def test_rows_that_deviate_from_the_train_rows_are_told_and_refused_where_strict(refit, rows):
    rows.with_columns(colour=pl.lit("mauve")).write_csv("rows.csv")
    code, out, err = refit("predict", "toy@v1", "rows.csv", "--output", "scored.parquet", "--json")
    (deviation,) = json.loads(out)["deviations"]
    assert (code, deviation["column"], deviation["rows"], deviation["of"]) == (0, "colour", 60, 60)
    assert "column `colour`: 60 of 60 rows hold a category that the model does not know, such as `mauve`" in err
    Path("scored.parquet").write_text("yesterday's")
    code, out, err = refit("predict", "toy@v1", "rows.csv", "--output", "scored.parquet", "--strict")
    assert (code, out, Path("scored.parquet").read_text()) == (2, "", "yesterday's")
    assert "error: column `colour`: 60 of 60 rows hold a category" in err


@pytest.mark.usefixtures("toy", "source")
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("toy", "rows.csv", "--output", "scored.parquet"), 1, "toy@champion: expected a version of 'toy'"),
        (("toy@v1", "absent.csv", "--output", "scored.parquet"), 2, "absent.csv: expected a file, folder or glob, found nothing"),
        (("toy@v1", "rows.csv", "--output", "scored.csv"), 2, "--output: expected a file ending in .parquet"),
        (("toy@v1", "rows.csv", "--output", "file/scored.parquet"), 1, "--output: expected a place that can be written"),
        (("toy@v1", "rows.csv"), 2, "--output"),
        (("toy@v1", "--output", "scored.parquet"), 2, "SOURCE"),
    ],
)
def test_the_command_exits_with_one_line_for_a_mistake(refit, arguments, code, message):
    found, out, err = refit("predict", *arguments)
    assert (found, out) == (code, "")
    (line,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert message in line
    assert err.splitlines()[-1] == line
