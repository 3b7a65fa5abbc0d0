import pickle
from datetime import date, timedelta

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import refit
from refit.errors import SettingsError
from refit.training.checkpoints import digest_weights

QUICK = {"preset": "plain", "model": {"hidden_sizes": [16]}, "optimizer": {"lr": 0.02}, "training": {"num_epochs": 20}}


def make_rows(num_rows: int = 120) -> pl.DataFrame:
    """Numbers, a category, dates and missing values; the first two tell the kind."""
    generator = np.random.default_rng(0)
    size, colour = generator.normal(size=num_rows), generator.integers(2, size=num_rows)
    return pl.DataFrame(
        {
            "size": [None if place % 11 == 5 else number for place, number in enumerate(size)],
            "colour": [["red", "green"][place] for place in colour],
            "seen": [date(2024, 1, 1) + timedelta(days=int(days)) for days in generator.integers(300, size=num_rows)],
            "kind": [["cat", "dog"][int(number + 2 * place > 1)] for number, place in zip(size, colour, strict=True)],
        }
    )


@parametrize_with_checks(
    [
        refit.Classifier(QUICK | {"training": {"num_epochs": 30}}, random_state=0),
        refit.Regressor(QUICK | {"training": {"num_epochs": 60}}, random_state=0),
    ]
)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_scikit_learn_accepts_it(estimator, check):
    check(estimator)


def test_its_weights_are_those_of_a_run_on_the_same_table():
    rows = make_rows()
    rows.write_parquet("rows.parquet")
    features = ["size", "colour", "seen"]
    data = {"source": "rows.parquet", "target": "kind", "test": 0, "features": features, "kinds": {"size": "number"}}
    run = refit.train({**QUICK, "seed": 3, "data": data}, report=lambda _: None)
    state = torch.get_rng_state()
    model = refit.Classifier(QUICK, random_state=3).fit(rows[features], rows["kind"])
    assert digest_weights(model.model_.module.state_dict()) == run.model.weights_digest
    assert torch.equal(torch.get_rng_state(), state)
    assert model.predict(rows[features]).tolist() == refit.load_model(run.model.path).predict(rows).tolist()


@pytest.mark.parametrize("convert", [pl.DataFrame.to_pandas, lambda rows: rows], ids=["pandas", "polars"])
def test_frames_may_hold_categories_dates_and_missing_values(convert):
    rows = make_rows()
    model = refit.Classifier(QUICK).fit(convert(rows.drop("kind")), rows["kind"].to_list())
    assert model.feature_names_in_.tolist() == ["size", "colour", "seen"]
    assert model.classes_.tolist() == ["cat", "dog"]
    assert model.score(convert(rows.drop("kind")), rows["kind"].to_list()) > 0.85
    np.testing.assert_allclose(model.predict_proba(convert(rows.drop("kind")))[:3].sum(axis=1), 1)


def test_it_is_cloned_pickled_searched_and_part_of_a_pipeline():
    generator = np.random.default_rng(1)
    y = np.arange(90) % 3
    x = generator.normal(size=(90, 3)) + 3 * y[:, None]
    model = refit.Classifier(QUICK, random_state=0)
    assert clone(model).get_params() == model.get_params()
    fitted = clone(model).fit(x, y)
    assert (pickle.loads(pickle.dumps(fitted)).predict_proba(x) == fitted.predict_proba(x)).all()
    assert cross_val_score(make_pipeline(StandardScaler(), model), x, y, cv=2).min() > 0.8
    slow = QUICK | {"optimizer": {"lr": 1e-6}}
    assert GridSearchCV(model, {"settings": [slow, QUICK]}, cv=2).fit(x, y).best_params_ == {"settings": QUICK}


def test_numbers_are_predicted_as_by_a_run_on_the_same_table():
    rows = make_rows().with_columns(price=100 + 30 * pl.col("size").fill_null(0) + 20 * (pl.col("colour") == "red"))
    rows.write_parquet("rows.parquet")
    features = ["size", "colour"]
    data = {"source": "rows.parquet", "target": "price", "test": 0, "features": features, "kinds": {"size": "number"}}
    settings = QUICK | {"training": {"num_epochs": 60}}
    run = refit.train({**settings, "data": data}, report=lambda _: None)
    model = refit.Regressor(settings).fit(rows[features], rows["price"])
    assert digest_weights(model.model_.module.state_dict()) == run.model.weights_digest
    assert model.score(rows[features], rows["price"]) > 0.9
    assert model.predict(rows[features]).tolist() == refit.load_model(run.model.path).predict(rows).tolist()


def test_a_class_with_too_few_rows_to_learn_has_no_probability():
    x = np.random.default_rng(2).normal(size=(61, 2))
    y = np.array(["a", "b"] * 30 + ["aa"])
    model = refit.Classifier(QUICK).fit(x, y)
    assert model.classes_.tolist() == ["a", "aa", "b"]
    assert (model.predict_proba(x)[:, 1] == 0).all()


def test_neither_the_environment_nor_a_file_has_a_say(monkeypatch):
    x, y = np.random.default_rng(2).normal(size=(60, 2)), np.arange(60) % 2
    before = refit.Classifier(QUICK).fit(x, y).predict_proba(x)
    monkeypatch.setenv("REFIT_SEED", "5")
    with open("refit.toml", "w") as file:
        file.write('[data]\nsplit = "time"\n')
    assert (refit.Classifier(QUICK).fit(x, y).predict_proba(x) == before).all()


def test_with_a_store_epochs_that_are_done_are_not_trained_again(capsys):
    x, y = np.random.default_rng(2).normal(size=(60, 2)), np.arange(60) % 2
    first = refit.Classifier(QUICK, store="kept").fit(x, y).predict_proba(x)
    again = refit.Classifier(QUICK, store="kept", verbose=True).fit(x, y).predict_proba(x)
    assert (first == again).all()
    assert "done before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "y", "error", "message"),
    [
        ({"data": {"source": "rows.csv"}}, [0, 1] * 20, ValueError, r"expected no data\.source, as `fit` gets the rows"),
        ({"optimizer": {"rate": 1}}, [0, 1] * 20, SettingsError, r"optimizer\.rate .*: unknown setting"),
        ({}, [1] * 40, ValueError, r"y: expected two classes or more, found 1 class: 1; add rows"),
    ],
)
def test_what_cannot_be_fitted_is_refused(settings, y, error, message):
    with pytest.raises(error, match=message):
        refit.Classifier(settings).fit(pd.DataFrame({"x": range(40)}), y)
