import re
import traceback
from pathlib import Path

import pytest

from refit.errors import SettingsError
from refit.settings import PRESETS, ROWS_OF_A_BATCH, NothingGiven, Settings, SettingsTree, env_name, resolve_settings, walk_settings


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch):
    monkeypatch.delenv("REFIT_TRAINING__BASELINE")


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.write_text(text)
    return path


def refused(given: dict | None = None, settings_file: Path | None = None) -> str:
    with pytest.raises(SettingsError) as caught:
        resolve_settings(given, settings_file)
    return str(caught.value)


def given_by_name(values: dict) -> dict:
    """A nested dictionary of values by dotted name."""
    given: dict = {}
    for name, value in values.items():
        section, _, field = name.rpartition(".")
        (given.setdefault(section, {}) if section else given)[field] = value
    return given


@pytest.mark.parametrize(
    ("given", "preset"),
    [
        ({}, "notebook"),
        ({"model": {"factory": "network:build"}}, "notebook"),
        ({"data": {"source": "table.csv"}}, "table"),
        ({"data": {"source": "table.csv"}, "model": {"factory": "network:build"}}, "plain"),
        ({"data": {"factory": "images:build"}}, "plain"),
        ({"data": {"source": "table.csv"}, "preset": "plain"}, "plain"),
        ({"preset": "table"}, "table"),
    ],
)
def test_what_is_trained_chooses_the_defaults_unless_a_preset_is_named(given, preset):
    settings, origins = resolve_settings(given)
    assert settings.preset == preset
    expected = dict(walk_settings(SettingsTree(**given))) | PRESETS[preset] | {"preset": preset}
    if "model" in given:
        expected["data.max_one_hot"] = None
    assert dict(walk_settings(settings)) == expected
    assert {name for name, origin in origins.items() if origin == f"preset {preset}"} == {*PRESETS[preset]}
    assert set(origins) == {name for name, _ in walk_settings(SettingsTree())}


def test_the_batch_size_waits_for_the_number_of_rows():
    settings, origins = resolve_settings({"data": {"source": "table.csv"}})
    assert (settings.loader.batch_size, origins["loader.batch_size"]) == (None, f"default: {ROWS_OF_A_BATCH}")


GIVEN = {
    "loader.batch_size": 7,
    "loader.drop_last": True,
    "model.hidden_sizes": [3],
    "optimizer.name": "adam",
    "optimizer.lr": 0.5,
    "training.num_epochs": 2,
    "training.patience": None,
}


@pytest.mark.parametrize("source", ["notebook", "table.csv"])
@pytest.mark.parametrize("name", GIVEN)
def test_what_is_given_beats_the_default_of_a_table_and_of_the_notebook_one_by_one(name, source, monkeypatch):
    """The optimizer's own settings alone have defaults that depend on another setting."""
    value, given = GIVEN[name], {"data.source": source}
    before, _ = resolve_settings(given_by_name(given))
    monkeypatch.setenv(env_name(name), "none" if value is None else str(value))
    after, origins = resolve_settings(given_by_name(given))
    assert dict(walk_settings(after))[name] == value
    assert origins[name] == "environment"
    others = {other for other, found in walk_settings(after) if found != dict(walk_settings(before))[other]} - {name}
    of_optimizer = {"optimizer.lr"} | ({"optimizer.weight_decay"} if source == "table.csv" else set())
    assert others == (of_optimizer if name == "optimizer.name" else set())


@pytest.mark.parametrize(
    ("source", "name", "lr"),
    [
        ("notebook", "sgd", 1.0),
        ("notebook", "adam", 0.001),
        ("table.csv", "sgd", 0.01),
        ("table.csv", "adam", 0.001),
        ("table.csv", "adamw", 0.002),
    ],
)
def test_the_default_learning_rate_is_that_of_the_optimizer(source, name, lr):
    given = {"data": {"source": source}, "optimizer": {"name": name}}
    assert resolve_settings(given)[0].optimizer.lr == lr
    given["optimizer"]["lr"] = 0.3
    assert resolve_settings(given)[0].optimizer.lr == 0.3


@pytest.mark.parametrize("val", [0, 0.0, "0"])
def test_without_validation_rows_patience_is_none_unless_it_is_given(val):
    given = {"data": {"source": "table.csv", "val": val}}
    assert resolve_settings(given)[0].training.patience is None
    assert resolve_settings({**given, "training": {"patience": 3}})[0].training.patience == 3


def test_resolved_settings_resolve_to_themselves():
    """A local run resolves them twice: in the command, and in its flow."""
    for given in ({}, {"data": {"source": "table.csv"}}):
        settings, _ = resolve_settings(given)
        assert resolve_settings(settings.model_dump())[0] == settings


def test_parameters_of_a_run_beat_all_else_and_errors_call_them_by_their_names():
    parameters = {"changes": {"optimizer": {"lr": 0.2}}, "deployment": {"seed": 2, "optimizer": {"lr": 0.1, "momentum": 0.1}}}
    settings, origins = resolve_settings({"seed": 3}, parameters=parameters)
    assert (settings.optimizer.lr, origins["optimizer.lr"]) == (0.2, "changes")
    assert (settings.optimizer.momentum, origins["optimizer.momentum"]) == (0.1, "deployment")
    assert (settings.seed, origins["seed"]) == (2, "deployment")
    with pytest.raises(SettingsError, match=r"optimizer\.lr \(from changes\): expected a number of more than 0"):
        resolve_settings(parameters={"changes": {"optimizer": {"lr": 0}}})


def test_flags_beat_environment_beats_env_file_beats_toml_beats_defaults(monkeypatch):
    """Five settings, each given by one source less than the one before it."""
    write("refit.toml", 'seed = 1\nname = "toml"\n[optimizer]\nlr = 0.1\nmomentum = 0.1\n')
    write(".env", "REFIT_SEED=2\nREFIT_NAME=dotenv\nREFIT_OPTIMIZER__LR=0.2\n")
    monkeypatch.setenv("REFIT_SEED", "3")
    monkeypatch.setenv("REFIT_NAME", "environment")
    settings, origins = resolve_settings({"seed": 4})
    assert (settings.seed, origins["seed"]) == (4, "command line")
    assert (settings.name, origins["name"]) == ("environment", "environment")
    assert (settings.optimizer.lr, origins["optimizer.lr"]) == (0.2, ".env")
    assert (settings.optimizer.momentum, origins["optimizer.momentum"]) == (0.1, "refit.toml")
    assert (settings.optimizer.weight_decay, origins["optimizer.weight_decay"]) == (0.0, "default")


def test_a_source_that_gives_one_setting_of_a_section_leaves_the_others_to_weaker_sources(monkeypatch):
    write("refit.toml", "[training]\nnum_epochs = 7\npatience = 2\n")
    monkeypatch.setenv("REFIT_TRAINING__PATIENCE", "4")
    settings, _ = resolve_settings({"training": {"accumulate_batches": 3}})
    assert (settings.training.num_epochs, settings.training.patience, settings.training.accumulate_batches) == (7, 4, 3)


def test_what_is_given_is_not_changed_by_what_is_merged():
    write("refit.toml", "[training]\nnum_epochs = 7\n")
    given = {"training": {"patience": 2}, "data": {"val": 0.2}}
    resolve_settings(given)
    assert given == {"training": {"patience": 2}, "data": {"val": 0.2}}


def test_a_named_settings_file_is_read_instead_of_refit_toml():
    write("refit.toml", "seed = 1\n[training]\nnum_epochs = 7\n")
    settings, origins = resolve_settings(settings_file=write("other.toml", "seed = 2\n"))
    assert (settings.seed, origins["seed"]) == (2, "other.toml")
    assert settings.training.num_epochs == PRESETS["notebook"]["training.num_epochs"]


def test_a_named_settings_file_that_is_missing_is_refused():
    assert (
        refused(settings_file=Path("absent.toml")) == "--settings: expected a TOML file, found no file absent.toml; check the path"
    )


@pytest.mark.parametrize("content", [b"seed = \n", b"seed = 1\nseed = 2\n", b"name = '\xff'\n"])
def test_a_file_that_is_no_toml_is_refused_by_name(content):
    Path("refit.toml").write_bytes(content)
    assert refused().startswith("refit.toml: expected a TOML file, found ")


@pytest.mark.parametrize(
    ("name", "given", "hint"),
    [
        ("optimizer.lrr", {"optimizer": {"lrr": 1}}, "did you mean `optimizer.lr`?"),
        ("optimzer", {"optimzer": {"lr": 1}}, "did you mean `optimizer.lr`?"),
        ("data.zzzzzzzzzz", {"data": {"zzzzzzzzzz": 1}}, "`refit settings` lists them"),
    ],
)
def test_an_unknown_name_on_the_command_line_is_refused_with_the_nearest_known_one(name, given, hint):
    assert name in refused(given)
    assert "unknown setting" in refused(given)
    if name != "optimzer":  # a section's own name has no near setting
        assert hint in refused(given)


@pytest.mark.parametrize(
    ("variable", "name", "near"),
    [
        ("REFIT_OPTIMIZER__LRR", "optimizer.lrr", "optimizer.lr"),
        ("REFIT_OPTIMZER__LR", "optimzer.lr", "optimizer.lr"),
        ("REFIT_SEEDS", "seeds", "seed"),
    ],
)
def test_an_unknown_environment_variable_is_refused_with_the_nearest_known_one(monkeypatch, variable, name, near):
    monkeypatch.setenv(variable, "3")
    assert refused() == f"{name} (from environment): unknown setting; did you mean `{near}`?"


def test_an_unknown_name_in_env_file_and_toml_is_refused_with_its_origin():
    write(".env", "REFIT_TRAINING__EPOCHS=3\n")
    assert refused().startswith("training.epochs (from .env): unknown setting; did you mean `training.")
    write(".env", "")
    write("refit.toml", "[loader]\nbatchsize = 3\n")
    assert refused() == "loader.batchsize (from refit.toml): unknown setting; did you mean `loader.batch_size`?"


def test_variables_of_other_programs_in_the_env_file_are_no_concern_of_ours(monkeypatch):
    write(".env", "DATABASE_URL=postgres://x\nREFITTED=1\nOTHER__SEED=3\nREFIT_SEED=5\n")
    monkeypatch.setenv("SEED", "9")
    settings, _ = resolve_settings()
    assert settings.seed == 5


def test_environment_variables_count_in_either_case(monkeypatch):
    monkeypatch.setenv("refit_optimizer__lr", "0.25")
    assert resolve_settings()[0].optimizer.lr == 0.25


def test_every_setting_can_be_given_by_its_environment_variable(monkeypatch):
    """Its own default, written as text, comes back as the same value with another origin."""
    for name, value in walk_settings(SettingsTree()):
        text = "none" if value is None else str(value).replace("'", '"')
        monkeypatch.setenv(env_name(name), text)
    settings, origins = resolve_settings()
    assert dict(walk_settings(settings)) == dict(walk_settings(SettingsTree()))
    assert set(origins.values()) == {"environment"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", ""),
        ("name", "Model"),
        ("name", "a/b"),
        ("name", "../a"),
        ("name", "-a"),
        ("name", "a" * 65),
        ("name", "a\n"),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", 1.5),
        ("data.val", 1.0),
        ("data.val", "1.0"),
        ("data.val", -0.1),
        ("data.val", True),
        ("data.test", -1),
        ("data.test", 1.5),
        ("data.test", float("nan")),
        ("data.test", "14 d"),
        ("data.window", "0d"),
        ("data.gap", "1y"),
        ("data.split_by", "groups"),
        ("data.split", "stratified"),
        ("loader.batch_size", 0),
        ("loader.drop_last", "perhaps"),
        ("model.hidden_sizes", [16, 0]),
        ("model.hidden_sizes", "[16"),
        ("model.hidden_sizes", 16),
        ("model.activation", "softsign"),
        ("model.dropout", 1),
        ("model.factory", "networks"),
        ("model.factory", "networks:a:b"),
        ("model.factory", "networks:build\n"),
        ("optimizer.name", "lion"),
        ("optimizer.lr", 0),
        ("optimizer.lr", float("nan")),
        ("optimizer.lr", float("inf")),
        ("optimizer.momentum", 1),
        ("optimizer.weight_decay", -1),
        ("optimizer.weight_decay", float("inf")),
        ("optimizer.schedule", "linear"),
        ("optimizer.warmup_steps", -1),
        ("training.num_epochs", 0),
        ("training.patience", 0),
        ("training.accumulate_batches", 0),
        ("training.max_grad_norm", 0),
        ("training.max_grad_norm", float("nan")),
        ("compute.device", "GPU"),
        ("compute.device", "cuda:"),
        ("compute.precision", "fp16"),
        ("compute.num_threads", 0),
        ("store.url", None),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_the_setting_its_origin_and_the_value(name, value):
    section, _, field = name.rpartition(".")
    message = refused({section: {field: value}} if section else {field: value})
    found = value[-1] if value == [16, 0] else value
    assert re.fullmatch(rf"{name} \(from command line\): expected .*, found {re.escape(repr(found))}(; .+)", message), message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optimizer.lr", 0),
        ("optimizer.lr", "fast"),
        ("optimizer.name", "lion"),
        ("loader.drop_last", "perhaps"),
        ("name", "Model"),
        ("name", "a" * 65),
        ("model.factory", "networks"),
        ("compute.device", "GPU"),
    ],
)
def test_every_refusal_says_what_was_expected_before_what_was_found(name, value):
    section, _, field = name.rpartition(".")
    assert refused({section: {field: value}} if section else {field: value}).startswith(f"{name} (from command line): expected")


def test_a_bound_is_said_in_the_words_of_expected_and_found(monkeypatch):
    monkeypatch.setenv("REFIT_OPTIMIZER__LR", "-1")
    assert refused() == (
        "optimizer.lr (from environment): expected a number of more than 0 and less than 1e+38, found '-1'; change it"
    )


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (
            "optimizer.name",
            "lion",
            "'sgd', 'adam', 'adamw', 'nadam', 'radam', 'adamax', 'adagrad', 'adadelta', 'adafactor', 'asgd', 'rmsprop' or 'rprop'",
        ),
        ("training.num_epochs", 2.5, "a whole number of at least 1"),
        ("model.hidden_sizes", ["x"], "a whole number"),
        ("promotion.min_score", "high", "a number"),
        ("promotion.confidence", 2, "a number of more than 0.5 and less than 1"),
        ("compute.device", "GPU", "`auto`, `cpu`, `cuda`, `cuda:N` or `mps`"),
        ("loader.drop_last", "perhaps", "true or false"),
        ("model.factory", "networks", "`package.module:function`"),
        ("model.options", "wide", """names and values, such as `{"width": 64}`"""),
    ],
)
def test_a_refusal_names_the_values_that_are_allowed(name, value, expected):
    section, _, field = name.rpartition(".")
    assert f"expected {expected}, found" in refused({section: {field: value}})


@pytest.mark.parametrize(
    ("span", "remedy"),
    [
        ("0d", "write `0` for no rows"),
        ("14 d", "write it as `14d`"),
        ("014d", "write it as `14d`"),
        ("1.5d", "take a whole number of a smaller unit, such as `36h` for one and a half days"),
        ("3m", "the unit of a span is `s`, `min`, `h`, `d` or `w`"),
        ("99999999d", "take at most 6 digits, of a larger unit if need be"),
        ("two weeks", "name one of these"),
    ],
)
def test_a_span_that_is_none_is_refused_with_the_reason(span, remedy):
    message = refused({"data": {"val": span, "split": "time", "time_column": "t"}})
    assert message.endswith(f"or a span of time such as `14d`, found {span!r}; {remedy}")


def test_a_slice_column_that_is_named_twice_is_refused():
    assert refused({"promotion": {"slices": ["shop", "id", "shop"]}}) == (
        "promotion.slices: expected each column once, found 'shop' 2 times; drop one"
    )


def test_all_mistakes_are_named_at_once_one_a_line(monkeypatch):
    monkeypatch.setenv("REFIT_SEED", "x")
    lines = refused({"optimizer": {"lr": 0, "nam": "sgd"}}).splitlines()
    assert sorted(line.split()[0].rstrip(":") for line in lines) == ["optimizer.lr", "optimizer.nam", "seed"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"data": {"split": "time"}}, "data.time_column: expected a column to order rows by"),
        ({"data": {"test_source": "a.csv", "test": 0.1}}, "data.test: expected none"),
        ({"data": {"val": 0.5, "test": 0.5}}, "data.val + data.test: expected less than 1"),
        ({"data": {"test": "14d"}}, "data.test: only a `time` split orders rows by age, found 14d; set data.split to `time`"),
        ({"data": {"gap": 10}}, "data.gap: only a `time` split"),
        ({"data": {"window": 0.5}}, "data.window: only a `time` split"),
        ({"data": {"split": "time", "time_column": "t", "window": 0}}, "data.window: expected rows to train on, found 0"),
        ({"data": {"split_by": "features", "group_column": "k"}}, "data.split_by: expected `rows`, as data.group_column"),
        (
            {"optimizer": {"name": "adam", "momentum": 0.9}},
            "optimizer.momentum: only sgd and rmsprop have it, found adam; leave it 0",
        ),
    ],
)
def test_settings_that_contradict_one_another_are_refused(given, message):
    assert refused(given).startswith(message)


def test_a_contradiction_between_sources_is_refused_too(monkeypatch):
    write("refit.toml", '[optimizer]\nname = "adamw"\n')
    monkeypatch.setenv("REFIT_OPTIMIZER__MOMENTUM", "0.9")
    assert "optimizer.momentum" in refused()


def test_none_is_written_as_a_word_and_beats_a_weaker_source(monkeypatch):
    write("refit.toml", "[training]\npatience = 3\nmax_grad_norm = 1.0\n")
    monkeypatch.setenv("REFIT_TRAINING__PATIENCE", "none")
    settings, origins = resolve_settings({"training": {"max_grad_norm": "none"}})
    assert (settings.training.patience, origins["training.patience"]) == (None, "environment")
    assert (settings.training.max_grad_norm, origins["training.max_grad_norm"]) == (None, "command line")


def test_none_stays_a_word_where_the_setting_cannot_be_none():
    assert resolve_settings({"data": {"target": "none"}})[0].data.target == "none"


@pytest.mark.parametrize(
    ("text", "size"),
    [("0.2", 0.2), ("0", 0.0), ("0.0", 0.0), ("500", 500), ("1", 1), ("90min", "90min"), ("14d", "14d"), ("none", None)],
)
def test_a_size_is_a_share_a_number_or_a_span_wherever_it_is_given(monkeypatch, text, size):
    by_time = {"split": "time", "time_column": "t"}
    monkeypatch.setenv("REFIT_DATA__TEST", text)
    write("refit.toml", f"[data]\ngap = {text if isinstance(size, float | int) else repr(text)}\n")
    data = resolve_settings({"data": {**by_time, "val": text}})[0].data
    assert (data.val, data.test, data.gap) == (size, size, size)
    assert {type(data.val), type(data.test), type(data.gap)} == {type(size)}, "as keys tell 0 from 0.0"
    assert SettingsTree.model_validate_json(SettingsTree(data=data).model_dump_json()).data == data


@pytest.mark.parametrize(("text", "sizes"), [("[64, 32]", [64, 32]), ("[]", []), ("[8]", [8])])
def test_lists_are_written_as_json_in_the_environment_and_the_env_file(monkeypatch, text, sizes):
    write(".env", f"REFIT_MODEL__HIDDEN_SIZES='{text}'\n")
    assert resolve_settings()[0].model.hidden_sizes == sizes
    write(".env", "")
    monkeypatch.setenv("REFIT_MODEL__HIDDEN_SIZES", text)
    assert resolve_settings()[0].model.hidden_sizes == sizes


def test_a_list_of_texts_keeps_its_texts(monkeypatch):
    monkeypatch.setenv("REFIT_DATA__NULL_VALUES", '["", "-", "1,5", "ü"]')
    assert resolve_settings()[0].data.null_values == ["", "-", "1,5", "ü"]


def test_settings_do_not_change():
    settings, _ = resolve_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.seed = 3
    with pytest.raises(ValueError, match="frozen"):
        settings.optimizer.lr = 3


def test_the_plain_tree_reads_neither_environment_nor_files(monkeypatch):
    monkeypatch.setenv("REFIT_SEED", "3")
    write("refit.toml", "seed = 4\n")
    assert SettingsTree().seed == 0
    assert Settings().seed == 0


SECRET_URLS = [
    "s3://key:s3cret/x@bucket/x",
    "simplecache::s3://key:s3cret@bucket",
    "ftp://:s3cret@host",
    "https://s3cret@host/x.csv",
    "https://key:p@s3cret@host/x.csv",
    "https://key:s3 cret@host/x.csv",
    "https://host/x?ACCESS_TOKEN=s3cret",
    "https://host/my file.csv?s3cret",
    "https://host/x.csv#s3cret",
    "s3://bucket/x.csv?Signature=s3cret",
]
PLAIN_URLS = ["x.csv", "http://host:8080/a@b.csv", "s3://bucket/a:b@c.csv", "abfs://box@account.net/x", "s3://bucket/day-?/a=1.csv"]


@pytest.mark.parametrize("url", SECRET_URLS)
@pytest.mark.parametrize("name", ["store.url", "data.source", "data.test_source"])
def test_a_secret_in_a_url_is_refused_and_not_repeated(name, url):
    section, field = name.split(".")
    with pytest.raises(SettingsError, match=rf"{name} \(from command line\): expected a URL without a secret, found") as caught:
        resolve_settings({section: {field: url}})
    told = "".join(traceback.format_exception(caught.value))  # as a log shows it, with its causes
    assert "cret@" not in told
    assert "s3cret" not in told
    assert "AWS_SECRET_ACCESS_KEY" in told


@pytest.mark.parametrize("text", ["", "  "])
@pytest.mark.parametrize("name", ["store.url", "data.source", "data.test_source"])
def test_an_empty_url_as_of_a_variable_that_is_not_set_is_refused(name, text, monkeypatch):
    monkeypatch.setenv(f"REFIT_{name.upper().replace('.', '__')}", text)
    with pytest.raises(
        SettingsError, match=rf"{name} \(from environment\): expected a path or URL, found an empty text, .*; name one"
    ):
        resolve_settings()


@pytest.mark.parametrize("url", PLAIN_URLS)
def test_a_url_without_a_secret_is_taken(url):
    assert resolve_settings({"store": {"url": url}})[0].store.url == url


def test_a_form_refuses_a_secret_before_it_is_sent():
    pattern = SettingsTree.model_json_schema()["$defs"]["StoreSettings"]["properties"]["url"]["pattern"]
    assert [url for url in SECRET_URLS if re.search(pattern, url)] == []
    assert [url for url in PLAIN_URLS if re.search(pattern, url)] == PLAIN_URLS


def test_a_form_of_the_tree_is_empty_and_says_default_and_bounds_of_every_setting_in_words():
    """Prefect's form sends what is filled in, and what was filled in by default too: it would hide the worker's environment."""
    schema = SettingsTree.model_json_schema()
    sections = [schema, *schema["$defs"].values()]
    fields = [field for section in sections for field in section["properties"].values()]
    assert [field for field in fields if "default" in field or field.get("type") == "boolean"] == []
    leaves = [field for field in fields if "$ref" not in field]
    assert len(leaves) == len(dict(walk_settings(SettingsTree())))
    assert [leaf for leaf in leaves if not re.search(r"\. Default: .+\.$", leaf["description"])] == []
    bounded = [leaf["description"] for leaf in leaves if re.search("[mM]inimum", str({**leaf, "items": None}))]
    assert [text for text in bounded if not re.search(r"(?i) in \[|at least|more than|in \(", text)] == []
    loader, training = (schema["$defs"][name]["properties"] for name in ("LoaderSettings", "TrainingSettings"))
    assert loader["batch_size"]["description"] == (
        "Rows in a training batch; None means 256, or 32 below 5,000 train rows. At least 1. Default: none."
    )
    assert loader["drop_last"]["enum"] == [True, False]
    assert training["patience"]["description"].endswith("or 32 if an epoch has few batches; None: never. Default: 10.")


def test_a_run_that_is_given_nothing_leaves_every_setting_open():
    assert dict(walk_settings(NothingGiven())) == dict(walk_settings(SettingsTree()))
    assert NothingGiven().model_dump(exclude_unset=True) == {}
    assert NothingGiven().model_dump_json() == "{}"


def test_options_are_taken_from_one_source_as_a_whole(monkeypatch):
    monkeypatch.setenv("REFIT_MODEL__OPTIONS", '{"width": 5, "depth": 2}')
    monkeypatch.setenv("REFIT_MODEL__FACTORY", "networks:build")
    settings, origins = resolve_settings()
    assert (settings.model.options, origins["model.options"]) == ({"width": 5, "depth": 2}, "environment")
    settings, origins = resolve_settings({"model": {"options": {"width": 7}}})
    assert (settings.model.options, origins["model.options"]) == ({"width": 7}, "command line")


def test_options_without_a_factory_are_refused():
    message = refused({"model": {"options": {"width": 7}}})
    assert (
        message == "model.options: expected none without a factory that takes them, found `width`; set model.factory, or drop them"
    )


def test_the_format_of_a_column_may_come_from_anywhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("refit.toml").write_text('[data]\nformats = {sold = "%d/%m/%Y"}\n')
    settings, origins = resolve_settings()
    assert (settings.data.formats, origins["data.formats"]) == ({"sold": "%d/%m/%Y"}, "refit.toml")
    for written in ('{"sold": "%m/%d/%Y"}', '{sold = "%m/%d/%Y"}'):
        monkeypatch.setenv("REFIT_DATA__FORMATS", written)
        settings, origins = resolve_settings()
        assert (settings.data.formats, origins["data.formats"]) == ({"sold": "%m/%d/%Y"}, "environment")
