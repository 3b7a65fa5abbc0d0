import contextlib
import hashlib
import itertools
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from torch import nn

import refit
from refit.errors import DataError, RefitError
from refit.makers import find_maker
from refit.promotion import comparison
from refit.promotion.comparison import Verdict, compare, score_rows, time_row
from refit.promotion.fair_rows import explain_missing_rows
from refit.refs import SavedModel
from refit.registry.versions import move_alias
from refit.reports import figures
from refit.serving.saved_model import Model, load_model
from refit.settings import DataSettings, PromotionSettings, SettingsTree
from refit.store.store import Store
from refit.tables.dataset import build_dataset
from refit.tables.manifest import load_test_rows
from refit.tables.table_examples import load_manifest

LOGS = [SimpleNamespace(train_loss=0.5)]


def make_rows(num_rows: int, classes: str = "ab", seed: int = 0) -> pl.DataFrame:
    """Classes in turn; `x0` tells them apart, `id` is not learned from."""
    generator = np.random.default_rng(seed)
    y = np.arange(num_rows) % len(classes)
    columns = {f"x{i}": generator.normal(size=num_rows) + 1.5 * y * (i == 0) for i in range(3)}
    shops = [("north", "south", None)[index] for index in generator.integers(3, size=num_rows)]
    return pl.DataFrame({"id": range(num_rows), **columns, "shop": shops, "y": [classes[index] for index in y]})


def judge(store: Store, candidate: SavedModel, champion: SavedModel | None, **settings) -> Verdict:
    return compare(candidate, champion and champion.version, PromotionSettings.model_validate(settings), store)


def write_dialect(folder: Path, dialect: dict) -> None:
    """Let a version have learned from files that were written like this."""
    manifest = json.dumps({**json.loads((folder / "manifest.json").read_text()), "dialect": dialect}).encode()
    record = json.loads((folder / "version.json").read_text())
    record["files"]["manifest.json"] = hashlib.sha256(manifest).hexdigest()
    (folder / "manifest.json").write_bytes(manifest)
    (folder / "version.json").write_text(json.dumps(record))


def find_test_rows(version: SavedModel, store: Store) -> pl.DataFrame:
    return load_test_rows(load_model(version.path).manifest, store)


def score_plainly(model: Model, rows: pl.DataFrame) -> dict[str, float]:
    probabilities = model.predict_proba(rows)
    truth = [model.classes.tolist().index(label) for label in rows["y"]]
    of_truth = probabilities[np.arange(rows.height), truth]
    return {
        "accuracy": (probabilities.argmax(1) == truth).mean(),
        "log likelihood": np.log(of_truth).mean(),
        "floored log likelihood": np.log(np.maximum(of_truth, 0.01)).mean(),
    }


def test_both_are_scored_on_the_test_rows_that_the_champion_has_not_learned_from(save_version, store):
    rows = make_rows(300)
    champion, candidate = save_version(rows[:200], seed=1), save_version(rows)
    tested = find_test_rows(candidate, store)
    learned = set(range(200)) - set(find_test_rows(champion, store)["id"])
    fair = tested.filter(~pl.col("id").is_in(learned))
    assert 25 < fair.height < 65

    verdict = judge(store, candidate, champion)
    assert (verdict.decision.num_rows, verdict.num_left_out) == (fair.height, tested.height - fair.height)
    assert verdict.reason.endswith(f"; without rows that were learned from ({verdict.num_left_out} by the champion)")
    assert list(verdict.scores)[:-1] == ["model@v2", "model@v1"]
    for version in (candidate, champion):
        expected = score_plainly(load_model(version.path), fair)
        found = verdict.scores[version.reference]
        assert [*found] == ["accuracy", "log likelihood", "ROC AUC", "calibration error", "milliseconds a row", "megabytes"]
        assert found["accuracy"] == pytest.approx(expected["accuracy"])
        assert found["log likelihood"] == pytest.approx(expected["log likelihood"], rel=1e-5)
    figures = verdict.decision.candidate, verdict.decision.champion
    assert figures == pytest.approx([verdict.scores[name]["accuracy"] for name in ("model@v2", "model@v1")])
    assert sum(map(sum, verdict.confusion)) == fair.height
    assert verdict.rows_before == {"train": 110, "val": 30, "test": 60}
    assert verdict.rows_now == {"train": 166, "val": 44, "test": 90}
    assert {drift.column for drift in verdict.drifts} == {"x0", "x1", "x2", "y"}


def test_both_are_judged_by_the_weights_that_had_not_learned_from_all_rows(save_version, store):
    """Classes that nobody can know: the weights that are served have them by heart, of the test rows too."""
    rows = make_rows(100).with_columns(pl.col("y").shuffle(seed=0))
    by_heart = {"hidden_sizes": (64,), "num_epochs_on_all": 300}
    champion, candidate = save_version(rows, num_epochs=1, **by_heart), save_version(rows, num_epochs=2, **by_heart)
    verdict = judge(store, candidate, champion)
    tested = find_test_rows(candidate, store)
    for version, figure in ((candidate, verdict.decision.candidate), (champion, verdict.decision.champion)):
        assert figure == pytest.approx(score_plainly(load_model(version.path, held_back=True), tested)["accuracy"])
        assert figure < 0.7 < score_plainly(load_model(version.path), tested)["accuracy"]


def test_by_log_likelihood_that_is_what_decides(save_version, store):
    rows = make_rows(1000)
    champion, candidate = save_version(rows, num_epochs=1, lr=0.0), save_version(rows, num_epochs=15)
    verdict = judge(store, candidate, champion, score="log_likelihood")
    for version, figure in ((candidate, verdict.decision.candidate), (champion, verdict.decision.champion)):
        expected = score_plainly(load_model(version.path), find_test_rows(version, store))
        assert figure == pytest.approx(expected["floored log likelihood"], abs=1e-6)
    assert verdict.decision.is_better
    assert verdict.num_left_out == 0
    assert "learned from" not in verdict.reason


def test_test_rows_that_the_candidate_has_learned_from_are_left_out_before_and_after_training(save_version, store):
    """Last night's test rows were added to the source; the champion has not seen them, the candidate has."""
    old, new = make_rows(200), make_rows(60, seed=1)
    test_rows = make_rows(40, seed=2)
    test_rows.write_parquet("test.parquet")
    apart = {"test_source": "test.parquet", "test": None}
    champion = save_version(old, **apart)
    candidate = save_version(pl.concat([old, test_rows[:30]]), num_epochs=10, **apart)
    verdict = judge(store, candidate, champion)
    learned_from = load_model(candidate.path).manifest.splits
    assert verdict.num_left_out == verdict.rows_now["train"] + learned_from["val"].rows - 200 == 30
    assert verdict.decision.num_rows == 10
    assert verdict.reason == f"not promoted: {verdict.figures}"
    assert verdict.figures.startswith("on only 10 rows: accuracy")
    assert verdict.reason.endswith("; without rows that were learned from (30 by the candidate)")

    manifest = load_model(candidate.path).manifest
    assert explain_missing_rows(manifest, "model", champion.version, store) is None
    candidate = save_version(pl.concat([old, test_rows, new]), **apart)
    needed = (
        "expected test rows that neither the candidate nor the champion has learned from, found none among 40"
        " (40 by the candidate); add new rows, remove those of data.test_source from data.source,"
        " or split them as before, by the same seed and data settings"
    )
    assert explain_missing_rows(load_model(candidate.path).manifest, "model", champion.version, store) == needed
    with pytest.raises(DataError, match="found none among 40"):
        judge(store, candidate, champion)


def make_few_values(num_rows: int, seed: int) -> pl.DataFrame:
    """Rows of eight kinds, which cannot be told apart."""
    generator = np.random.default_rng(seed)
    columns = {f"x{i}": generator.integers(2, size=num_rows) for i in range(3)}
    flips = generator.random(num_rows) < 0.2
    return pl.DataFrame({**columns, "y": ["ab"[value] for value in columns["x0"] ^ flips]})


def test_rows_of_few_values_are_equal_by_chance_and_all_may_judge(save_version, store):
    make_few_values(100, seed=9).write_parquet("test.parquet")
    apart = {"test_source": "test.parquet", "test": None}
    champion, candidate = (save_version(make_few_values(400, seed), **apart) for seed in (1, 2))
    verdict = judge(store, candidate, champion)
    assert (verdict.decision.num_rows, verdict.num_left_out, verdict.decision.num_clusters) == (100, 0, None)


def test_the_same_values_at_another_time_are_another_row(save_version, store):
    rows = make_rows(50).with_columns(time=pl.lit(0))
    twice = pl.concat([rows, rows.with_columns(time=pl.lit(1))])
    by_time = {"split": "time", "time_column": "time", "test": 0.5, "val": 0.0}
    champion, candidate = (save_version(twice, num_epochs, **by_time) for num_epochs in (1, 5))
    verdict = judge(store, candidate, champion)
    assert (verdict.decision.num_rows, verdict.num_left_out) == (50, 0)


def test_rows_that_the_champion_has_learned_from_are_left_out_though_the_candidate_cannot_tell_them_apart(save_version, store):
    rows = make_rows(240).with_columns(pl.col("x0").round())
    rows[:40].write_parquet("test.parquet")
    apart = {"test_source": "test.parquet", "test": None}
    champion, candidate = save_version(rows[10:200], **apart), save_version(rows[200:], features=("x0",), **apart)
    verdict = judge(store, candidate, champion)
    assert verdict.reason.endswith("; without rows that were learned from (30 by the champion)")


def test_rows_of_another_time_are_others_to_a_champion_that_knows_times_and_copies_to_a_candidate_without(save_version, store):
    before, after = (make_rows(40).with_columns(time=pl.lit(time)) for time in (0, 1))
    pl.concat([before, after]).write_parquet("test.parquet")
    apart = {"test_source": "test.parquet", "test": None, "val": 0.0}
    champion = save_version(after, split="time", time_column="time", **apart)
    candidate = save_version(make_rows(60, seed=1).with_columns(time=pl.lit(0)), **apart)
    assert judge(store, candidate, champion).reason.endswith("; without rows that were learned from (40 by the champion)")


def test_copies_of_rows_and_rows_of_a_group_count_together(save_version, store):
    copies = pl.concat([make_rows(40)] * 10)
    verdict = judge(store, save_version(copies, num_epochs=10), None)
    assert verdict.decision.num_rows == 120
    assert 30 < verdict.decision.num_clusters <= 40
    assert f"on 120 rows in {verdict.decision.num_clusters} groups" in verdict.reason

    pairs = pl.concat([make_rows(100)] * 2)
    verdict = judge(store, save_version(pairs, split_by="features"), None)
    assert verdict.decision.num_clusters == verdict.decision.num_rows / 2

    daily = make_rows(600).with_columns(customer=pl.arange(600, eager=True) // 4)
    verdict = judge(store, save_version(daily, group_column="customer"), None)
    tested = find_test_rows(save_version(daily, group_column="customer"), store)
    assert verdict.decision.num_clusters == tested["customer"].n_unique() == verdict.decision.num_rows / 4


def test_without_a_champion_the_majority_class_is_to_be_beaten(save_version, store):
    rows = make_rows(200, classes="aab")
    candidate = save_version(rows, num_epochs=10)
    tested = find_test_rows(candidate, store)
    verdict = judge(store, candidate, None)
    assert verdict.decision.champion == pytest.approx((tested["y"] == "a").mean())
    assert "of the majority class on" in verdict.reason
    assert ";" not in verdict.reason
    assert list(verdict.scores)[:-1] == ["model@v1"]
    assert (verdict.drifts, verdict.rows_before) == ([], None)

    shares = load_model(candidate.path).manifest.splits["train"].class_counts
    expected = np.log([(shares["ab".index(label)] + 1) / (sum(shares) + 2) for label in tested["y"]]).mean()
    assert verdict.decision.majority == verdict.decision.champion
    assert verdict.scores["majority class"] == {"accuracy": verdict.decision.majority, "log likelihood": pytest.approx(expected)}
    assert judge(store, candidate, None, score="log_likelihood").decision.champion == pytest.approx(expected)


def test_a_class_that_the_champion_does_not_know_is_one_more_row_to_it_and_wrong(save_version, store):
    rows = make_rows(240, classes="abc")
    champion, candidate = save_version(rows.filter(pl.col("y") != "c")), save_version(rows)
    model = load_model(champion.path)
    num_train = model.manifest.splits["train"].rows
    learned = set(rows.filter(pl.col("y") != "c")["id"]) - set(find_test_rows(champion, store)["id"])
    tested = find_test_rows(candidate, store).filter(~pl.col("id").is_in(learned))
    unknown = tested.filter(y="c")
    known = score_plainly(model, tested.filter(pl.col("y") != "c"))
    share = unknown.height / tested.height
    assert share > 0.2

    verdict = judge(store, candidate, champion, score="log_likelihood")
    scale = math.log(num_train / (num_train + 1))
    expected = (1 - share) * (known["floored log likelihood"] + scale) + share * math.log(1 / (num_train + 1))
    assert verdict.decision.champion == pytest.approx(expected, abs=1e-6)
    assert judge(store, candidate, champion).decision.champion == pytest.approx((1 - share) * known["accuracy"])
    assert [drift.new_categories for drift in verdict.drifts if drift.column == "y"] == [["c"]]


def test_classes_that_a_model_does_not_know_come_after_those_that_it_knows_in_the_order_of_their_names(save_version):
    model = load_model(save_version(make_rows(40, classes="ezz")).path)
    scored = score_rows(model, make_rows(16, classes="zyhgfdcb"))
    assert scored.labels == [*"ez", *"bcdfghy"]
    assert scored.score_baseline("accuracy", np.ones(16, bool)).tolist() == [1.0, *[0.0] * 7] * 2


def damage(version: SavedModel) -> None:
    path = Path(version.path, "model.pt")
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def lose(version: SavedModel) -> None:
    Path(version.path, "model.pt").unlink()


@pytest.mark.parametrize("break_it", [damage, lose], ids=["damaged", "gone"])
def test_the_champion_before_stands_in_for_one_whose_files_are_damaged_or_gone(save_version, store, break_it):
    rows = make_rows(200)
    versions = [save_version(rows, num_epochs) for num_epochs in (1, 2, 20, 3)]
    for before, version in zip([None, 1], versions, strict=False):
        move_alias(store, "model", version.version, expected=before, why="better")
    move_alias(store, "model", 3, expected=2, why="best")
    break_it(versions[2])
    verdict = judge(store, versions[3], versions[2])
    assert (verdict.alarm, verdict.judged_by, list(verdict.scores)[:-1]) == ("damaged", 2, ["model@v4", "model@v2"])
    assert "model@v3 is damaged: " in verdict.reason
    assert "model.pt: expected" in verdict.reason
    assert verdict.reason.endswith("; model@v2, an earlier champion, stands in for it")

    for version in versions[:2]:
        break_it(version)
    verdict = judge(store, versions[3], versions[2])
    assert (verdict.alarm, verdict.judged_by, verdict.decision.is_better) == ("damaged", None, False)
    assert all(f"model@v{number} is damaged: " in verdict.reason for number in (1, 2, 3))
    assert "; no earlier champion can stand in; put its files back, or promote a version by hand" in verdict.reason
    verdict = judge(store, versions[3], versions[2], when_incomparable="promote")
    assert verdict.decision.is_better
    assert verdict.reason.endswith("; no earlier champion can stand in"), "nothing is left to do"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda rows: rows.with_columns(x2=pl.col("x2").round(1).cast(pl.String) + " g"),
            "column `x2`: expected a number, found a number written as `1234.5` with `g`; write it as before, or, if it stays so",
        ),
        (
            lambda rows: rows.with_columns(x2=pl.when(pl.col("x2") > 0).then(pl.lit("high")).otherwise(pl.lit("low"))),
            "column `x2`: expected a number, found a text, whole number or boolean; write it as before",
        ),
    ],
    ids=["unit", "kind"],
)
def test_a_champion_that_read_a_column_otherwise_cannot_be_compared(save_version, store, change, message):
    rows = make_rows(300, classes="abc")
    champion, candidate = save_version(rows, num_epochs=1), save_version(change(rows), num_epochs=20)
    verdict = judge(store, candidate, champion)
    assert (verdict.alarm, verdict.decision.is_better) == ("incomparable", False)
    assert f"model@v1 cannot be compared: {message}" in verdict.reason


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        (
            (",", "utf-8", True),
            (";", "utf-8", True),
            "expected files written with `,` between cells, as text in UTF-8, with a header, found",
        ),
        ((",", "utf-8", True), (",", "cp1252", True), "found them written with `,` between cells, as text in Windows-1252"),
        ((",", "ascii", True), (",", "cp1252", True), None),
    ],
)
def test_a_champion_whose_files_were_written_otherwise_cannot_be_compared(save_version, store, before, now, message):
    rows = make_rows(300, classes="abc")
    champion, candidate = save_version(rows, num_epochs=1), save_version(rows, num_epochs=20)
    for version, (separator, encoding, header) in ((champion, before), (candidate, now)):
        write_dialect(Path(version.path), {"separator": separator, "encoding": encoding, "header": header})
    verdict = judge(store, candidate, champion)
    assert (verdict.alarm == "incomparable") == (message is not None)
    assert message is None or message in verdict.reason


@pytest.mark.parametrize(
    ("change", "features", "message"),
    [
        (
            lambda rows: rows.drop("x2"),
            ("x0", "x1"),
            "model@v1 cannot be compared: expected the columns that it needs, found no `x2` in the data; bring them back",
        ),
        (lambda rows: rows.rename({"x2": "z"}), ("x0", "x1", "z"), "found no `x2` in the data"),
        (lambda rows: rows.with_columns(x2=pl.col("x2").round(1).cast(pl.String) + " g"), ("x0", "x1"), "column `x2`: expected"),
        (
            lambda rows: rows.filter(pl.col("y") != "c"),
            ("x0", "x1", "x2"),
            "model@v1 cannot be compared: column `y`: expected rows of every class that it knows, found none of `c`; add such rows",
        ),
    ],
    ids=["column gone", "column renamed", "column of text", "class gone"],
)
def test_a_champion_that_cannot_be_compared_stays_unless_the_settings_say_otherwise(save_version, store, change, features, message):
    rows = make_rows(300, classes="abc")
    champion = save_version(rows, num_epochs=1)
    candidate = save_version(change(rows), num_epochs=20, features=features)
    verdict = judge(store, candidate, champion)
    assert verdict.reason.startswith("not promoted: accuracy")
    assert verdict.reason.endswith("; promotion.when_incomparable is `keep`")
    assert message in verdict.reason
    assert (verdict.alarm, verdict.decision.is_better, list(verdict.scores)[:-1]) == ("incomparable", False, ["model@v2"])
    for choice in ("ask", "promote"):
        verdict = judge(store, candidate, champion, when_incomparable=choice)
        assert (verdict.alarm, verdict.decision.is_better) == ("incomparable", True)
        assert "of the majority class" in verdict.reason
    assert "promote a candidate by hand" not in verdict.reason, "as it is promoted"


def test_a_champion_that_no_longer_beats_the_majority_class_has_collapsed_whatever_becomes_of_the_candidate(save_version, store):
    rows = make_rows(400)
    turned = rows.with_columns(y=pl.col("y").replace({"a": "b", "b": "a"}))
    champion = save_version(rows, num_epochs=10, seed=1)
    first = judge(store, champion, None)
    assert (first.alarm, first.decision.is_better) == (None, True)
    details = {"decision": first.decision.model_dump(mode="json")}
    move_alias(store, "model", 1, expected=None, why="better", details=details)
    assert judge(store, save_version(rows, num_epochs=12, seed=1), champion).alarm is None

    good = judge(store, save_version(turned, num_epochs=20), champion)
    assert (good.alarm, good.decision.is_better) == ("collapsed", True)
    bad = judge(store, save_version(turned, num_epochs=1, hidden_sizes=(1,), lr=0.0), champion)
    assert (bad.alarm, bad.decision.is_better) == ("collapsed", False)
    assert "; it does not beat the majority class" in bad.reason
    for verdict in (good, bad):
        assert "; model@v1 has collapsed: accuracy 0." in verdict.reason
        assert verdict.reason.endswith(f"it was ahead by at least {first.decision.lead:.4f} when it was promoted")


def test_slices_are_the_rows_of_each_value_of_a_column(save_version, store):
    rows = make_rows(200)
    candidate = save_version(rows)
    found = dict(load_model(candidate.path).manifest.find_slices(rows, ["shop"]))
    assert len(found) == 3
    assert {name: int(mask.sum()) for name, mask in found.items()} == {
        "shop is missing": rows["shop"].null_count(),
        "shop = north": (rows["shop"] == "north").sum(),
        "shop = south": (rows["shop"] == "south").sum(),
    }
    with pytest.raises(DataError, match=r"promotion\.slices: expected a column of the table, found no `ship`.*did you mean `shop`"):
        judge(store, candidate, None, slices=["ship"])


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_a_slice_that_is_no_column_of_the_test_rows_is_refused_before_there_is_a_candidate(tmp_path, name):
    rows, path = make_rows(4), tmp_path / name
    rows.write_csv(path) if name.endswith("csv") else rows.write_parquet(path)
    check_slices = find_maker(DataSettings()).check_slices
    for data in (DataSettings(source=str(path)), DataSettings(source="none.csv", test_source=str(path))):
        check_slices(["shop", "id"], data)
        with pytest.raises(
            DataError, match=rf"promotion\.slices: expected a column of .*{name}, found no `ship`.*did you mean `shop`"
        ):
            check_slices(["ship"], data)
    check_slices(["x1"], DataSettings())


def test_slices_of_one_row_each_are_said_to_show_nothing(save_version, store):
    candidate = save_version(make_rows(300), num_epochs=2)
    told = "promotion.slices by `id` have one row each, which cannot show a drop; name columns with fewer values"
    assert told in judge(store, candidate, None, slices=["shop", "id"]).reason
    assert "promotion.slices" not in judge(store, candidate, None, slices=["shop"]).reason


def test_latency_and_size_are_measured_and_their_budgets_kept(save_version, store):
    rows = make_rows(200)
    candidate = save_version(rows, num_epochs=10)
    verdict = judge(store, candidate, None)
    costs = verdict.scores["model@v1"]
    assert costs["milliseconds a row"] > 0
    assert costs["megabytes"] == Path(candidate.path, "model.pt").stat().st_size / 1e6
    for budget, what in ({"max_latency_ms": 1e-6}, "a row takes"), ({"max_size_mb": 1e-6}, "the weights take"):
        refused = judge(store, candidate, None, **budget)
        assert not refused.decision.is_better
        assert what in refused.reason


def test_the_time_of_a_row_is_the_median_in_milliseconds(monkeypatch):
    calls = itertools.count()
    monkeypatch.setattr(comparison.time, "perf_counter", lambda: (number := next(calls)) * 0.002 + 9.0 * (number > 40))
    scored = SimpleNamespace(score_one=lambda _: None)
    assert time_row(scored, None) == pytest.approx(2.0)


def test_a_champion_that_cannot_score_the_rows_is_not_compared(save_version, store, monkeypatch):
    rows = make_rows(200)
    champion, candidate = save_version(rows, seed=1), save_version(rows)

    def fail_later(*given):
        monkeypatch.setattr(comparison, "score_rows", fail)
        return score_rows(*given)

    def fail(*_):
        raise DataError("no finite logits")

    monkeypatch.setattr(comparison, "score_rows", fail_later)
    verdict = judge(store, candidate, champion)
    assert (verdict.alarm, verdict.judged_by, verdict.decision.is_better) == ("incomparable", None, False)
    assert "; model@v1 cannot be compared: no finite logits; promotion.when_incomparable is `keep`" in verdict.reason


def test_limits_of_time_and_size_hold_for_the_candidate_alone(save_version, store, monkeypatch):
    monkeypatch.setattr(comparison, "time_row", lambda scored, _: float(len(scored.model.settings.model.hidden_sizes)))
    rows = make_rows(200)
    champion, candidate = save_version(rows, hidden_sizes=(64, 64), seed=1), save_version(rows, seed=1)
    sizes = [Path(version.path, "model.pt").stat().st_size / 1e6 for version in (candidate, champion)]
    assert sizes[0] < sizes[1]
    assert "megabytes" not in judge(store, candidate, champion, max_size_mb=sum(sizes) / 2).reason
    assert "the weights take" not in judge(store, candidate, champion, max_size_mb=sum(sizes) / 2).reason
    assert "the weights take" in judge(store, champion, candidate, max_size_mb=sum(sizes) / 2).reason
    assert "a row takes" not in judge(store, candidate, champion, max_latency_ms=1.0).reason
    assert "a row takes 2 ms" in judge(store, champion, candidate, max_latency_ms=1.0).reason


def test_slices_are_judged_on_their_own_rows_among_those_that_are_left(save_version, store):
    """The candidate knows nothing of the shops in the north; the champion has learned from other rows, which are left out."""
    generator = np.random.default_rng(3)
    shop, x = generator.choice(["north", "south"], 600), generator.normal(size=600)
    y = np.where((x > 0) ^ (shop == "north"), "a", "b")
    rows = pl.DataFrame({"shop": shop, "x0": x, "x1": x * (shop == "north"), "x2": x * (shop == "south"), "y": y})
    champion = save_version(rows[:400], num_epochs=10, seed=1)
    candidate = save_version(rows, num_epochs=10, features=("x2",))
    verdict = judge(store, candidate, champion, slices=["shop"])
    assert verdict.num_left_out > 20
    worse = {part.name: part for part in verdict.decision.worse}
    assert worse["shop = north"].is_refused
    assert (worse["shop = north"].candidate < 0.7, worse["shop = north"].champion > 0.9) == (True, True)
    assert "shop = south" not in worse
    fair = verdict.decision.num_rows
    assert 0.3 * fair < worse["shop = north"].num_rows < 0.7 * fair


def test_how_often_the_same_test_rows_have_judged_before_is_counted(save_version, store):
    rows = make_rows(100)
    first, second = save_version(rows), save_version(rows, num_epochs=4)
    assert [judge(store, version, None).earlier_looks for version in (first, second, first, second)] == [0, 1, 0, 1]
    assert judge(store, save_version(make_rows(100, seed=1)), None).earlier_looks == 0


def test_a_function_that_only_the_champions_record_names_is_not_called(store, save_version):
    rows = make_rows(200)
    champion, candidate = save_version(rows), save_version(rows, seed=1)
    folder = Path(champion.path)
    settings = json.loads((folder / "settings.json").read_text())
    settings["model"]["factory"] = "trap:build"
    record = json.loads((folder / "version.json").read_text())
    (folder / "settings.json").write_text(json.dumps(settings))
    record["files"]["settings.json"] = hashlib.sha256((folder / "settings.json").read_bytes()).hexdigest()
    (folder / "version.json").write_text(json.dumps(record))
    Path("trap.py").write_text("raise SystemExit('imported')")
    with contextlib.suppress(RefitError):
        judge(store, candidate, champion)
    assert "trap" not in sys.modules


@pytest.mark.parametrize("score", ["accuracy", "log_likelihood"])
@pytest.mark.parametrize("data", [{}, {"group_column": "shop"}], ids=["rows", "groups"])
def test_the_lead_of_a_new_version_is_that_of_its_first_decision(save_version, store, score, data):
    rows = make_rows(300).with_columns(shop=pl.col("id") // 10)
    version, promotion = save_version(rows, **data), PromotionSettings(score=score)
    model, decision = load_model(version.path), compare(version, None, promotion, store).decision
    settings = model.settings.model_copy(update={"promotion": promotion})
    lead = comparison.judge(model.module, model.manifest, settings, store, LOGS, 1).lead
    assert (lead["split"], lead["num_rows"]) == ("test", decision.num_rows)
    assert (lead["model"], lead["majority"], lead["bound"]) == (decision.candidate, decision.majority, decision.lead)


def test_without_test_rows_the_lead_is_that_on_the_last_split_there_is(store):
    make_rows(100).write_csv("rows.csv")
    settings = SettingsTree.model_validate({"data": {"source": "rows.csv", "test": 0}})
    manifest = load_manifest(build_dataset(settings.data, 0, store), store)
    lead = comparison.judge(nn.Linear(len(manifest.signature.input_names), 2), manifest, settings, store, LOGS, 1).lead
    assert (lead["split"], lead["num_rows"]) == ("val", manifest.splits["val"].rows)


@pytest.mark.parametrize("must_beat_baseline", [True, False])
def test_a_candidate_that_boosted_trees_beat_is_said_so_and_not_promoted_if_it_must_beat_them(
    store, must_beat_baseline, monkeypatch
):
    monkeypatch.setattr(figures, "draw_losses", lambda *_: b"")
    monkeypatch.setattr(figures, "draw_confusion", lambda *_: b"")
    x = np.random.default_rng(0).normal(size=(600, 2))
    is_one = (x[:, 0] > 0) != (x[:, 1] > 0.5)
    pl.DataFrame({"x0": x[:, 0], "x1": x[:, 1], "y": is_one.astype(int)}).write_csv("rows.csv")
    given = {
        "data": {"source": "rows.csv"},
        "model": {"hidden_sizes": []},
        "optimizer": {"lr": 0.05},
        "training": {"num_epochs": 20, "baseline": "both"},
        "store": {"url": store.url},
    }
    candidate = refit.train(given, report=lambda _: None).model
    verdict = judge(store, candidate, None, must_beat_baseline=must_beat_baseline)
    assert "boosted trees are better on this table: accuracy 0." in verdict.reason
    assert verdict.decision.is_better is not must_beat_baseline
    assert list(verdict.scores) == [candidate.reference, "majority class", "linear model", "boosted trees"]
    assert verdict.scores["boosted trees"]["accuracy"] > verdict.scores[candidate.reference]["accuracy"]
