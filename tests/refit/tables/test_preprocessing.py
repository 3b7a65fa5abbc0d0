from datetime import date, datetime
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from refit.data.signature import Target
from refit.errors import DataError
from refit.tables.formats import ClockFormat
from refit.tables.preprocessing import (
    MAX_CATEGORIES,
    AnyColumn,
    TextColumn,
    apply_columns,
    fit_columns,
    name_inputs,
    read_frame,
    sign_columns,
)
from refit.tables.schema import find_reading


def fit(frame: pl.DataFrame) -> list[AnyColumn]:
    found = {values.name: find_reading(values, ["NA"], str) for values in frame}
    converted = pl.DataFrame([values for _, values in found.values()])
    readings = {name: reading for name, (reading, _) in found.items()}
    kinds = {name: reading.kind for name, reading in readings.items()}
    return fit_columns(converted, kinds, ["NA"], formats={name: reading.format for name, reading in readings.items()})


def apply(columns: list[AnyColumn], rows: Any) -> list[list[float]]:
    return apply_columns(columns, read_frame(rows)).tolist()


def test_a_model_can_have_the_numbers_as_they_were() -> None:
    seen = pl.datetime_range(datetime(2024, 1, 1), datetime(2024, 1, 4), "1d", eager=True)
    rows = pl.DataFrame(
        {"a": [1.0, None, 4.0, 9.0], "c": ["u", "v", "u", "v"], "one": [7, 7, 7, 7], "is": [True, False, True, True], "t": seen}
    )
    columns = fit(rows)
    signature = sign_columns(columns, Target(name="y", classes=[0, 1]))
    numbers = signature.restore(signature.split(apply_columns(columns, rows))[0])
    names = [name for name in signature.input_names if "c" not in name.split("=")[0].split(" ")[0]]
    assert names == ["a", "a is missing", "one", "is", "t.year", "t.month", "t.day", "t.weekday"]
    expected = [[1, 0], [4, 1], [4, 0], [9, 0]]
    days = [[7, is_it, 2024, 1, day, day] for day, is_it in zip((1, 2, 3, 4), (1, 0, 1, 1), strict=True)]
    np.testing.assert_allclose(numbers.numpy(), np.hstack([expected, days]), rtol=1e-6)


def test_numbers_are_what_scikit_learn_makes_of_them() -> None:
    generator = np.random.default_rng(0)
    train, rows = generator.normal(5, 3, (50, 3)), generator.normal(5, 3, (20, 3))
    train[generator.random((50, 3)) < 0.2] = np.nan
    rows[generator.random((20, 3)) < 0.2] = np.nan
    train[:, 2] = 7  # constant
    oracle = make_pipeline(SimpleImputer(strategy="median", add_indicator=False), StandardScaler()).fit(train)
    expected = oracle.transform(rows) * [1, 1, 0]
    columns = fit(pl.DataFrame(train, schema=["a", "b", "c"]))
    inputs = apply_columns(columns, pl.DataFrame(rows, schema=["a", "b", "c"])).numpy()
    assert name_inputs(columns) == ["a", "a is missing", "b", "b is missing", "c"]
    np.testing.assert_allclose(inputs[:, [0, 2, 4]], expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(inputs[:, [1, 3]], np.isnan(rows[:, :2]))


def test_categories_are_what_scikit_learn_makes_of_them_with_rare_and_unseen_ones_together() -> None:
    train = pl.DataFrame({"c": list("aaabbbcdde")})
    rows = pl.DataFrame({"c": list("abcdez")})
    oracle = OneHotEncoder(min_frequency=2, handle_unknown="infrequent_if_exist", sparse_output=False).fit(train.to_numpy())
    columns = fit(train)
    assert name_inputs(columns) == ["c=a", "c=b", "c=d", "c is other"]
    np.testing.assert_array_equal(apply_columns(columns, rows).numpy(), oracle.transform(rows.to_numpy()))


def test_no_more_than_a_stated_number_of_categories_is_kept_the_most_frequent_first() -> None:
    names = [f"{number:03}x" for number in range(MAX_CATEGORIES + 1)]
    columns = fit(pl.DataFrame({"rows": names * 2 + names[-1:]}))
    assert name_inputs(columns) == [f"rows={name}" for name in [*names[:-2], names[-1]]] + ["rows is other"]


def test_many_categories_are_codes_with_one_for_others_and_one_for_missing_values() -> None:
    train = pl.DataFrame({"c": [*"abcabcz", None], "few": [*"uvuvuvuv"]})
    columns = fit_columns(train, {"c": "categorical", "few": "categorical"}, max_one_hot=2)
    assert name_inputs(columns) == ["c", "few=u", "few=v", "few is other"]
    rows = pl.DataFrame({"c": [*"abcz?", None], "few": [*"uuuuuu"]})
    assert apply_columns(columns, rows)[:, 0].tolist() == [0, 1, 2, 3, 3, 4]
    signature = sign_columns(columns, Target(name="y", classes=[0, 1]))
    assert signature.categories == [5, 3]
    assert signature.columns[0].vocabulary_digest is not None
    codes = signature.split(apply_columns(columns, rows))[1]
    assert [code.tolist() for code in codes] == [[0, 1, 2, 3, 3, 4], [0] * 6]


def test_quantiles_of_standardized_train_rows_are_kept() -> None:
    values = np.random.default_rng(0).exponential(size=1000)
    (column,) = fit(pl.DataFrame({"a": [*values, None]}))
    standardized = apply_columns([column], pl.DataFrame({"a": values}))[:, 0].numpy()
    assert column.quantiles == np.quantile(standardized, np.linspace(0, 1, 49), method="nearest").tolist()
    (signed,) = sign_columns([column], Target(name="y", classes=[0, 1])).columns
    assert signed.quantiles == [column.quantiles, []]
    (few,) = fit(pl.DataFrame({"a": [1.0, 2, 2, 3, 3, 3]}))
    assert (len(few.quantiles), len(set(few.quantiles))) == (49, 3)
    (constant,) = fit(pl.DataFrame({"a": [1.0, 1, 1]}))
    assert constant.quantiles == []
    many = fit_columns(pl.DataFrame({f"a{n}": [1.0, 2, 3] for n in range(4000)}), {f"a{n}": "numeric" for n in range(4000)})
    assert many[0].quantiles == [], "the record would be larger than the table"


def test_what_comes_around_again_is_told_the_model() -> None:
    hours = ["2026-01-01T00:00", "2026-03-04T06:30", None]
    days = [*map(date.fromisoformat, ["2026-01-01", "2026-03-04", "2026-07-05"])]
    frame = pl.DataFrame({"at": pl.Series(hours).str.to_datetime(), "day": days, "clock": [7.5, 20.25, 0.0], "size": [1.0, 2, 3]})
    kinds = {"at": "datetime", "day": "datetime", "clock": "numeric", "size": "numeric"}
    columns = fit_columns(frame, kinds, formats={"clock": ClockFormat()})
    periods = {column.name: column.periods for column in sign_columns(columns, Target(name="y", classes=[0, 1])).columns}
    assert periods == {
        "at": [0, 12, 31, 7, 24, 0],  # year, month, day, weekday, hour, whether it is missing
        "day": [0, 12, 31, 7],
        "clock": [24],
        "size": [],
    }


def test_a_missing_category_has_an_input_only_where_train_rows_lacked_one() -> None:
    assert apply(fit(pl.DataFrame({"c": ["a", "a", "b", None]})), {"c": [None, "NA", "a", "z"]}) == [
        *[[0, 0, 1]] * 2,
        [1, 0, 0],
        [0, 1, 0],
    ]
    assert apply(fit(pl.DataFrame({"c": ["a", "a", "b"]})), {"c": [None, "a"]}) == [[0, 1], [1, 0]]
    assert apply(fit(pl.DataFrame({"c": ["a", "b"]})), {"c": ["a", None]}) == [[1], [1]]


def test_booleans_are_0_and_1_and_the_most_frequent_where_missing() -> None:
    columns = fit(pl.DataFrame({"b": [True, True, False, None]}))
    assert apply(columns, {"b": ["false", "TRUE", None]}) == [[0, 0], [1, 0], [1, 1]]


def test_date_times_are_expanded_into_standardized_parts() -> None:
    times = [datetime(2020, 5, 17, 6, 30), datetime(2021, 1, 1), datetime(2019, 12, 31, 23, 0, 36)]
    columns = fit(pl.DataFrame({"t": times}))
    parts = [[t.year, t.month, t.day, t.isoweekday(), t.hour + t.minute / 60 + t.second / 3600] for t in times]
    assert name_inputs(columns) == ["t.year", "t.month", "t.day", "t.weekday", "t.hour"]
    np.testing.assert_allclose(apply(columns, {"t": times}), StandardScaler().fit_transform(parts), rtol=1e-6)
    assert name_inputs(fit(pl.DataFrame({"t": ["2020-01-01", None]})))[-2:] == ["t.weekday", "t is missing"]


@pytest.mark.parametrize(
    ("value", "later", "inputs"),
    [
        (5.0, [5e6, -1.0], [0.0]),
        (0.1, [1e30], [0.0]),
        ("a", ["b", "a"], [1.0, 0.0]),
        (True, [False], [1.0]),
        (datetime(2024, 1, 1), [datetime(2025, 6, 30)], [0.0] * 4),
    ],
)
def test_a_column_with_one_value_in_the_train_rows_has_no_influence_whatever_comes_later(value, later, inputs) -> None:
    columns = fit(pl.DataFrame({"c": [value] * 3}))
    assert columns[0].is_constant
    assert apply(columns, {"c": later}) == [inputs] * len(later)
    lacking = fit(pl.DataFrame({"c": [value, value, None]}))
    assert apply(lacking, {"c": [*later, None]})[: len(later)] == [[*inputs, 0.0]] * len(later)
    assert apply(lacking, {"c": [None]})[0][-1] == 1.0


@pytest.mark.parametrize("unit", ["ns", "us", "ms", "s", "D"])
def test_numpy_s_date_times_are_date_times_in_whatever_unit(unit: str) -> None:
    times = np.array(["2025-01-01", "2025-02-03", "NaT"], dtype=f"datetime64[{unit}]")
    assert read_frame({"t": times})["t"].cast(pl.Datetime("us")).to_list() == [datetime(2025, 1, 1), datetime(2025, 2, 3), None]


def test_later_rows_are_read_in_the_format_of_the_train_rows() -> None:
    columns = fit(pl.DataFrame({"price": ["$1,200", "$950", "$3"], "day": ["31.01.2020", "1.2.2020", "3.2.2020"]}))
    written = apply(columns, {"price": ["$2,000", "-$1"], "day": ["13.1.2021", "01.01.2021"]})
    assert written == apply(columns, {"price": [2000, -1], "day": [datetime(2021, 1, 13), datetime(2021, 1, 1)]})
    assert written == apply(columns, {"price": ["2000", "-1"], "day": ["2021-01-13", "2021-01-01"]})
    for column, text in {"price": "€5", "day": "1/2/2021"}.items():
        with pytest.raises(DataError, match=f"row 1, column `{column}`: expected a (number|date) written as .*, found '{text}'"):
            apply(columns, {"price": ["$5"], "day": ["1.1.2021"], column: [text]})


def test_missing_numbers_are_imputed_though_train_rows_lacked_none() -> None:
    assert (
        apply(fit(pl.DataFrame({"a": [1.0, 2.0, 6.0]})), {"a": [None, 2.0]})[0]
        == apply(fit(pl.DataFrame({"a": [1.0, 2, 6]})), {"a": [2]})[0]
    )


def test_a_column_without_any_value_is_left_out() -> None:
    assert name_inputs(fit(pl.DataFrame({"a": [None, None], "b": [1, 2]}))) == ["b"]


def test_raw_rows_may_be_polars_pandas_or_a_mapping_in_any_order_and_with_more_columns() -> None:
    columns = fit(pl.DataFrame({"n": [1.0, 2.0, None], "c": ["a", "a", None], "b": [True, False, None], "t": ["2020-01-01"] * 3}))
    rows = {"extra": [[1], [2]], "t": [datetime(2020, 1, 2), None], "b": [True, None], "c": ["a", None], "n": [1.5, None]}
    expected = apply(columns, rows)
    assert apply(columns, pl.DataFrame(rows)) == expected
    assert apply(columns, pd.DataFrame(rows)) == expected
    assert apply(columns, pd.DataFrame(rows).convert_dtypes()) == expected
    assert apply(columns, {name: np.array(values, dtype=object) for name, values in rows.items() if name != "extra"}) == expected
    assert apply_columns(columns, pl.DataFrame(rows).clear()).shape == (0, len(name_inputs(columns)))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"n": [1.0]}, r"expected column `c`, `m`, found `n`; add what is missing"),
        ({"n": [1.0, "x"], "c": ["a", "a"], "m": [1, 1]}, r"row 2, column `n`: expected a number, found 'x'; correct"),
        ({"n": [1.0, -np.inf], "c": ["a", "a"], "m": [1, 1]}, r"row 2, column `n`: expected a finite number, found -inf; correct"),
        (
            {"n": [1.0, 1e300], "c": ["a", "a"], "m": [1, 1]},
            r"row 2, column `n`: expected a number that fits float32 .* found 1e\+300",
        ),
        ({"n": [1.0], "c": [["a"]], "m": [1]}, r"row 1, column `c`: expected .* text, found List\(String\); leave"),
        ({"n": 1.0, "c": ["a"], "m": [1]}, r"column `n`: expected a list of values, found 1.0; put it in a list"),
        ({"n": [1.0], "c": ["a", "b"], "m": [1]}, r"expected columns of one length"),
        ([{"n": 1.0}], r"expected a polars or pandas DataFrame or a mapping of column to values, found list; convert it"),
        (pd.DataFrame([[1, 2]], columns=["n", "n"]), r"distinct names, found others .*n"),
    ],
)
def test_raw_rows_that_do_not_fit_are_refused(rows: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        apply(fit(pl.DataFrame({"n": [1.0, 2.0], "c": ["a", "a"], "m": [1, 2]})), rows)


MESSAGES = ["win a prize now", "call me now", "prize call", None, "lunch tomorrow", "no lunch now"]


def test_a_text_becomes_the_numbers_of_the_ngrams_of_train_rows_as_exact_floats() -> None:
    frame = pl.DataFrame({"note": [*MESSAGES, "only in the test rows", "only in the test rows"]})
    (column,) = fit_columns(frame, {"note": "text"}, ["NA"], rows=np.arange(6))
    assert isinstance(column, TextColumn)
    assert column.ngrams[:3] == ["#<now", "#now>", "now"]
    assert not any("only" in ngram for ngram in column.ngrams)
    x = apply_columns([column], frame)
    held = [[column.ngrams[number - 1] for number in row if number] for row in x.long().tolist()]
    assert held[1] == ["call", "now", "#<cal", "#call", "#all>", "#<now", "#now>"]
    assert held[3] == []
    assert (x == x.long()).all()
    assert name_inputs([column]) == [f"note[{place}]" for place in range(column.width)]
    signature = sign_columns([column], Target(name="y", classes=[0, 1]))
    assert (signature.columns[0].kind, signature.texts[0].num_ngrams) == ("text", len(column.ngrams))


def test_a_missing_text_has_no_ngrams_and_no_indicator() -> None:
    (column,) = fit_columns(pl.DataFrame({"note": MESSAGES}), {"note": "text"}, ["NA"])
    assert not column.has_indicator
    for missing in ("NA", "", None):
        assert apply_columns([column], pl.DataFrame({"note": ["win now", missing]}))[1].sum() == 0


@pytest.mark.parametrize("texts", [["same words here"] * 4, ["one", "two", "six"]])
def test_texts_with_nothing_in_common_or_one_value_give_all_rows_the_same_inputs(texts: list[str]) -> None:
    (column,) = fit_columns(pl.DataFrame({"note": texts}), {"note": "text"})
    assert column.is_constant
    assert apply_columns([column], pl.DataFrame({"note": [*texts, "new"]})).sum() == 0


def test_a_kept_text_column_survives_its_record() -> None:
    (column,) = fit_columns(pl.DataFrame({"note": MESSAGES}), {"note": "text"})
    again = TextColumn.model_validate_json(column.model_dump_json())
    frame = pl.DataFrame({"note": MESSAGES})
    assert apply_columns([again], frame).equal(apply_columns([column], frame))
