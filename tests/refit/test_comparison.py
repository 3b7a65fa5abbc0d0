import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from refit.comparison import Verdict, check_slices, compare, find_slices
from refit.data.dataset import load_test_rows
from refit.errors import DataError
from refit.inference import Model, load_model
from refit.refs import SavedModel
from refit.settings import DataSettings, PromotionSettings
from refit.store import Store


def make_rows(num_rows: int, classes: str = "ab", seed: int = 0) -> pl.DataFrame:
    """Classes in turn; `x0` tells them apart, `id` is not learned from."""
    generator = np.random.default_rng(seed)
    y = np.arange(num_rows) % len(classes)
    columns = {f"x{i}": generator.normal(size=num_rows) + 1.5 * y * (i == 0) for i in range(3)}
    shops = [("north", "south", None)[index] for index in generator.integers(3, size=num_rows)]
    return pl.DataFrame({"id": range(num_rows), **columns, "shop": shops, "y": [classes[index] for index in y]})


def judge(store: Store, candidate: SavedModel, champion: SavedModel | None, **settings) -> Verdict:
    return compare(candidate, champion and champion.version, PromotionSettings.model_validate(settings), store)


def find_test_rows(version: SavedModel, store: Store) -> pl.DataFrame:
    return load_test_rows(load_model(version.path).manifest, store)


def score_plainly(model: Model, rows: pl.DataFrame) -> dict[str, float]:
    probabilities = model.predict_proba(rows)
    truth = [model.classes.tolist().index(label) for label in rows["y"]]
    likelihoods = np.log(probabilities[np.arange(rows.height), truth])
    return {"accuracy": (probabilities.argmax(1) == truth).mean(), "log likelihood": likelihoods.mean()}


def test_both_are_scored_on_the_test_rows_that_the_champion_has_not_learned_from(save_version, store):
    rows = make_rows(300)
    champion, candidate = save_version(rows[:200], seed=1), save_version(rows)
    tested = find_test_rows(candidate, store)
    learned = set(range(200)) - set(find_test_rows(champion, store)["id"])
    fair = tested.filter(~pl.col("id").is_in(learned))
    assert 25 < fair.height < 65

    verdict = judge(store, candidate, champion)
    assert (verdict.decision.num_rows, verdict.num_left_out) == (fair.height, tested.height - fair.height)
    assert verdict.reason.endswith(f"; without {verdict.num_left_out} rows that the champion has learned from")
    assert list(verdict.scores) == ["model@v2", "model@v1"]
    for version in (candidate, champion):
        expected = score_plainly(load_model(version.path), fair)
        found = verdict.scores[version.reference]
        assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    figures = verdict.decision.candidate, verdict.decision.champion
    assert figures == pytest.approx([verdict.scores[name]["accuracy"] for name in ("model@v2", "model@v1")])
    assert sum(map(sum, verdict.confusion)) == fair.height
    assert verdict.rows_before == {"train": 110, "val": 30, "test": 60}
    assert verdict.rows_now == {"train": 166, "val": 44, "test": 90}
    assert {drift.column for drift in verdict.drifts} == {"x0", "x1", "x2", "y"}


def test_by_log_likelihood_that_is_what_decides(save_version, store):
    rows = make_rows(200)
    champion, candidate = save_version(rows, num_epochs=1), save_version(rows, num_epochs=15)
    verdict = judge(store, candidate, champion, score="log_likelihood")
    for version, figure in ((candidate, verdict.decision.candidate), (champion, verdict.decision.champion)):
        expected = score_plainly(load_model(version.path), find_test_rows(version, store))
        assert figure == pytest.approx(expected["log likelihood"], abs=1e-6)
    assert verdict.decision.is_better
    assert verdict.num_left_out == 0


def test_a_row_that_both_have_learned_from_counts(save_version, store):
    """Rows come twice, in order of time: the second time they are test rows of both."""
    rows = make_rows(50).with_columns(time=pl.lit(0))
    twice = pl.concat([rows, rows.with_columns(time=pl.lit(1))])
    by_time = {"split": "time", "time_column": "time", "test": 0.5, "val": 0.0}
    champion, candidate = (save_version(twice, num_epochs, **by_time) for num_epochs in (1, 5))
    verdict = judge(store, candidate, champion)
    assert (verdict.decision.num_rows, verdict.num_left_out) == (50, 0)


def test_without_a_champion_the_majority_class_is_to_be_beaten(save_version, store):
    rows = make_rows(200, classes="aab")
    candidate = save_version(rows, num_epochs=10)
    tested = find_test_rows(candidate, store)
    verdict = judge(store, candidate, None)
    assert verdict.decision.champion == pytest.approx((tested["y"] == "a").mean())
    assert "of the majority class on" in verdict.reason
    assert list(verdict.scores) == ["model@v1"]
    assert (verdict.drifts, verdict.rows_before) == ([], None)

    shares = load_model(candidate.path).manifest.splits["train"].class_counts
    expected = np.log([(shares["ab".index(label)] + 1) / (sum(shares) + 2) for label in tested["y"]]).mean()
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
    expected = (1 - share) * (known["log likelihood"] + scale) + share * math.log(1 / (num_train + 1))
    assert verdict.decision.champion == pytest.approx(expected, abs=1e-6)
    assert judge(store, candidate, champion).decision.champion == pytest.approx((1 - share) * known["accuracy"])
    assert [drift.new_categories for drift in verdict.drifts if drift.column == "y"] == [["c"]]


def damage(version: SavedModel) -> None:
    path = Path(version.path, "model.pt")
    path.write_bytes(path.read_bytes()[:-1] + b"?")


@pytest.mark.parametrize("break_it", [damage, lambda version: Path(version.path, "model.pt").unlink()], ids=["damaged", "gone"])
def test_a_champion_whose_files_are_damaged_or_gone_is_no_match_and_the_reason_says_so(save_version, store, break_it):
    rows = make_rows(200)
    champion, candidate = save_version(rows[:150]), save_version(rows, num_epochs=10)
    break_it(champion)
    verdict = judge(store, candidate, champion)
    assert verdict.decision.is_better
    assert "of the majority class" in verdict.reason
    assert "model@v1 is no match, as it cannot score these rows: " in verdict.reason
    assert "model.pt: expected" in verdict.reason
    assert list(verdict.scores) == ["model@v2"]


def test_a_champion_that_needs_a_column_which_is_gone_is_no_match_but_its_drift_is_told(save_version, store):
    rows = make_rows(200)
    champion = save_version(rows[:150])
    candidate = save_version(rows.drop("x2"), num_epochs=10, features=("x0", "x1"))
    verdict = judge(store, candidate, champion)
    assert "model@v1 is no match, as it cannot score these rows: data.source: expected a column" in verdict.reason
    assert {drift.column: drift.extent for drift in verdict.drifts}["x2"] == "gone"


def test_rows_that_only_the_champion_has_learned_from_leave_none_to_compare_on(save_version, store):
    rows = make_rows(60).with_columns(time=pl.col("id"))
    by_time = {"split": "time", "time_column": "time", "val": 0.0}
    champion = save_version(rows, test=0.1, **by_time)
    candidate = save_version(rows[:50], test=0.2, **by_time)
    message = r"expected test rows that the champion has not learned from, found none among 10; add rows, or divide them as before"
    with pytest.raises(DataError, match=message):
        judge(store, candidate, champion)


def test_slices_are_the_rows_of_each_value_of_a_column(save_version, store):
    rows = make_rows(200)
    found = dict(find_slices(rows, ["shop"]))
    assert {name: int(mask.sum()) for name, mask in found.items()} == {
        "shop is missing": rows["shop"].null_count(),
        "shop = north": (rows["shop"] == "north").sum(),
        "shop = south": (rows["shop"] == "south").sum(),
    }
    candidate = save_version(rows)
    with pytest.raises(DataError, match=r"promotion\.slices: expected a column of the table, found no `ship`.*did you mean `shop`"):
        judge(store, candidate, None, slices=["ship"])


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_a_slice_that_is_no_column_of_the_test_rows_is_refused_before_there_is_a_candidate(tmp_path, name):
    rows, path = make_rows(4), tmp_path / name
    rows.write_csv(path) if name.endswith("csv") else rows.write_parquet(path)
    for data in (DataSettings(source=str(path)), DataSettings(source="none.csv", test_source=str(path))):
        check_slices(PromotionSettings(slices=["shop", "id"]), data)
        with pytest.raises(
            DataError, match=rf"promotion\.slices: expected a column of .*{name}, found no `ship`.*did you mean `shop`"
        ):
            check_slices(PromotionSettings(slices=["ship"]), data)
    check_slices(PromotionSettings(slices=["x1"]), DataSettings())


def test_latency_and_size_are_measured_and_their_budgets_kept(save_version, store):
    rows = make_rows(200)
    candidate = save_version(rows, num_epochs=10)
    verdict = judge(store, candidate, None)
    costs = verdict.scores["model@v1"]
    assert 0 < costs["milliseconds a row"] < 1000
    assert costs["megabytes"] == Path(candidate.path, "model.pt").stat().st_size / 1e6
    for budget, what in ({"max_latency_ms": 1e-6}, "a row takes"), ({"max_size_mb": 1e-6}, "the weights take"):
        refused = judge(store, candidate, None, **budget)
        assert not refused.decision.is_better
        assert what in refused.reason


def test_how_often_the_same_test_rows_have_judged_before_is_counted(save_version, store):
    rows = make_rows(100)
    first, second = save_version(rows), save_version(rows, num_epochs=4)
    assert [judge(store, version, None).earlier_looks for version in (first, second, first, second)] == [0, 1, 0, 1]
    assert judge(store, save_version(make_rows(100, seed=1)), None).earlier_looks == 0
