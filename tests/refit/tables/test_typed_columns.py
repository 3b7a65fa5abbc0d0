"""What is wrong with a table is said at once, with the flags that let it be trained on."""

import json
import random
import re
import shlex
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from refit.errors import DataError
from refit.settings import DataSettings
from refit.tables.draft import Draft, draft_dataset
from refit.tables.preprocessing import CategoricalColumn
from refit.tables.sources.opening import open_source
from refit.tables.typed_columns import ADVICE, type_features

N = 90


def make(**columns: list[Any]) -> dict[str, list[Any]]:
    pick = random.Random(0)
    return {**columns, "x": [pick.random() for _ in range(N)], "y": [pick.choice(["no", "yes"]) for _ in range(N)]}


def among(cells: list[str], others: list[str]) -> list[str]:
    """Cells of which every fifth is another."""
    return [others[row // 5 % len(others)] if row % 5 == 4 else cells[row % len(cells)] for row in range(N)]


def draft(path: Path, columns: dict[str, list[Any]], **settings: Any) -> Draft:
    pl.DataFrame(columns).write_csv(path / "rows.csv")
    return draft_dataset(DataSettings(source=f"{path}/rows.csv", **settings), 0)


def read_flags(error: DataError, start: str = ADVICE[0]) -> dict[str, Any]:
    (line,) = [line for line in error.args if line.startswith(start)]
    words = shlex.split(line.removeprefix(start))
    return {name.removeprefix("--data."): json.loads(value) for name, value in zip(words[::2], words[1::2], strict=True)}


AMBIGUOUS = [f"0{day}/0{month}/2024" for day in range(1, 10) for month in range(1, 10)]
FAULTY: list[tuple[dict[str, list[str]], list[str], dict[str, str]]] = [
    (
        {"bonus": among(["5", "7.5"], ["None"]), "stock": among(["$1,200", "$350"], ["N.I.", "Undisclosed"])},
        [
            r"row 5 of .*, line 6, column `bonus`: expected a number, found 'None' \(and 17 more such rows\); correct the value",
            r"column `stock`: expected a number written as `1,234.5` with `\$`, found 'N.I.' .*, also `Undisclosed`; correct",
        ],
        {"bonus": "numeric", "stock": "numeric"},
    ),
    (
        {"weight": among(["950", "7"], ["3,750", "?"])},
        [r"column `weight`: expected a number, found '3,750' \(and 17 more such rows\), also `\?`; correct the value"],
        {"weight": "numeric"},
    ),
    (
        {"boat": among(["1", "2", "3"], ["C", "D"])},
        [r"column `boat`: expected a number, found 'C' \(and 17 more such rows\), also `D`; correct the value"],
        {"boat": "categorical"},
    ),
    (
        {"version": among(["1.5", "2.5"], ["2.01.7"]), "zip": among(["10115", "80331"], ["12345-6789"])},
        [r"column `version`: expected a number, found '2.01.7'", r"column `zip`: expected a number, found '12345-6789'"],
        {"version": "categorical", "zip": "categorical"},
    ),
    (
        {
            "price": [f"$ {row * 37 + 900:,}" if row != 17 else "$ 900 - $ 1,200" for row in range(N)],
            "paid": [f"{row * 1.5:.2f}" if row % 40 else f"R$ {row},50" for row in range(N)],
            "day": [f"2024-01-{row % 28 + 1:02}" if row > 5 else "soon" for row in range(N)],
        },
        [
            r"column `price`: expected a number written as `1,234.5` with `\$`, found '\$ 900 - \$ 1,200'; correct",
            r"column `paid`: expected a number, found 'R\$ 0,50' \(and \d more such rows\), also `R\$ 40,50`",
            r"column `day`: expected an ISO date or date-time, found 'soon' \(and 5 more such rows\); correct",
        ],
        {"price": "numeric", "paid": "numeric", "day": "datetime"},
    ),
    (
        {"stage": [str(row % 4) if row > 5 else "4X" for row in range(N)]},
        [r"column `stage`: expected a number, found '4X'"],
        {"stage": "categorical"},
    ),
    (
        {"a": among(["1", "2"], ["?"]), "b": among(["3.5"], ["x9"]), "c": among(["inf", "5"], ["7"])},
        [r"column `a`: .*'\?'", r"column `b`: .*'x9'", r"column `c`: expected a finite number, found inf"],
        {"a": "numeric", "b": "categorical"},
    ),
    (
        {"sold": among(AMBIGUOUS, ["03/04/2024"]), "n": among(["1", "2"], ["none"])},
        [
            r"column `n`: expected a number, found 'none'",
            r"column `sold`: expected dates with one meaning, found that `.*` may mean 2024-..-.. \(`%d/%m/%Y`\) or 2024-..-.."
            r" \(`%m/%d/%Y`\); name the right notation in data.formats, or make the column a category in data.kinds",
        ],
        {"sold": "datetime", "n": "numeric"},
    ),
]


@pytest.mark.parametrize(("columns", "messages", "kinds"), FAULTY, ids=lambda case: str(case)[:30])
def test_a_refusal_names_every_fault_and_following_it_trains(
    tmp_path: Path, columns: dict[str, list[str]], messages: list[str], kinds: dict[str, str]
) -> None:
    with pytest.raises(DataError) as refused:
        draft(tmp_path, make(**columns))
    for message in messages:
        assert refused.match(message)
    assert len([line for line in refused.value.args if not line.startswith(ADVICE)]) == len(messages)
    found = draft(tmp_path, make(**columns), **read_flags(refused.value))
    assert {name: kind for name, kind in found.kinds.items() if name in columns} == kinds


def test_whole_rows_in_quotes_are_refused(tmp_path: Path) -> None:
    settings = DataSettings(source=f"{tmp_path}/rows.csv")
    (tmp_path / "rows.csv").write_text("".join(f'"0{row};17;{row * 7};y{row % 2}"\n' for row in range(N)))
    with pytest.raises(
        DataError, match=r"rows.csv: expected `;` between cells, found one a row, such as '0.;17;.*'; take away the"
    ):
        draft_dataset(settings, 0)
    (tmp_path / "rows.csv").write_text("".join(f"0{row};17;{row * 7};y{row % 2}\n" for row in range(N)))
    with pytest.raises(DataError, match=r"rows.csv: expected `;` between cells, found one a row, .*; set data.separator to it"):
        draft_dataset(settings.model_copy(update={"separator": "|"}), 0)


def test_a_fault_that_no_setting_mends_is_said_with_the_others_and_without_flags(tmp_path: Path) -> None:
    columns = make(a=among(["1", "2"], ["?"])) | {"y": ["0.5", *["0", "1"] * N][:N]}
    with pytest.raises(DataError, match=r"column `a`: expected a number(.|\n)*column `y`: .*looks continuous") as refused:
        draft(tmp_path, columns)
    assert "to train on it" not in str(refused.value)


@pytest.mark.parametrize(
    ("neighbour", "expected"),
    [
        (["31/12/2023", "01/02/2023"], datetime(2024, 2, 1)),
        (["12/31/2023", "02/01/2023"], datetime(2024, 1, 2)),
        (["31.12.23 08:05", "1.2.23 17:30"], datetime(2024, 2, 1)),
    ],
)
def test_day_and_month_are_told_apart_by_a_neighbouring_column(tmp_path: Path, neighbour: list[str], expected: datetime) -> None:
    pl.DataFrame(make(sold=["01/02/2024", *AMBIGUOUS, *["01/02/2024"] * (N - 82)], born=neighbour * (N // 2))).write_csv(
        tmp_path / "rows.csv"
    )
    settings = DataSettings(source=f"{tmp_path}/rows.csv")
    features = type_features(settings, open_source(settings.source).read())
    assert (features.faults, features.frame["sold"][0]) == ([], expected)
    assert (features.readings["sold"].remark or "").endswith("as other columns are written")


def test_classes_with_too_few_rows_are_said_beside_columns_that_cannot_be_read(tmp_path: Path) -> None:
    columns = make(a=among(["1", "2"], ["?"])) | {"y": [f"class {row // 2}" for row in range(N)]}
    with pytest.raises(DataError, match=r"column `a`: expected a number(.|\n)*column `y`: expected 3 rows or more of every class"):
        draft(tmp_path, columns)


COMMAS, POINTS = ["1,5", "2,25"], ["1.5", "2.25"]
THOUSANDS = ["4.282", "1.720", "8.420"]


@pytest.mark.parametrize(
    ("cells", "neighbour", "separator", "expected", "remark"),
    [
        (["1.250 €", "950 €"], COMMAS, ";", [1250, 950], "is read as 1250, as other columns are written"),
        (["1.250 €", "950 €"], POINTS, ";", [1.25, 950], "is read as 1.25, as other columns are written"),
        (THOUSANDS, COMMAS, ";", [4282, 1720], "is read as 4282, as other columns are written"),
        (THOUSANDS, POINTS, ";", [4.282, 1.720], None),
        (THOUSANDS, ["1", "2"], ",", [4.282, 1.720], "may mean 4.282 .* or 4282 .*, and is read as the first; add --data.formats"),
        (THOUSANDS, [*COMMAS, "1.5 €"], ";", [4.282, 1.720], "and is read as the first"),
        (["512", "8.420"], ["1", "2"], ";", [512, 8420], "is read as 8420, as hundreds such as"),
        (["3", "2.500"], ["1", "2"], ",", [3, 2.5], "and is read as the first"),
        (["8,627", "6,514"], COMMAS, ";", [8.627, 6.514], "is read as 8.627, as other columns are written"),
        (["8,627", "6,514"], POINTS, ",", [8627, 6514], "is read as 8627"),
        (["8,627", "6,514"], ["1", "2"], ",", [8627, 6514], "and is read as the first"),
        (["512", "8,420"], ["1", "2"], ";", [512, 8420], "is read as 8420"),
    ],
)
def test_a_decimal_sign_is_found_by_the_cells_or_by_a_neighbouring_column(
    tmp_path: Path, cells: list[str], neighbour: list[str], separator: str, expected: list[float], remark: str | None
) -> None:
    columns = {"price": (cells * N)[:N], "width": (neighbour * N)[:N]}
    settings = DataSettings(source=f"{tmp_path}/rows.csv")
    pl.DataFrame({**columns, "y": ["no", "yes"] * (N // 2)}).write_csv(settings.source, separator=separator)
    features = type_features(settings, open_source(settings.source).read())
    assert features.frame["price"].cast(pl.Float64)[:2].to_list() == expected
    assert re.search(remark or "^$", features.readings["price"].remark or "")


def test_a_notation_that_is_given_for_a_column_holds_for_its_neighbours(tmp_path: Path) -> None:
    pl.DataFrame({"a": THOUSANDS * 30, "b": THOUSANDS * 30, "y": ["no", "yes"] * 45}).write_csv(tmp_path / "rows.csv")
    settings = DataSettings(source=f"{tmp_path}/rows.csv", formats={"b": "1.234,5"})
    assert type_features(settings, open_source(settings.source).read()).frame["a"][0] == 4282


@pytest.mark.parametrize("start", ADVICE)
def test_numbers_of_two_meanings_between_semicolons_are_refused_with_the_flags_of_both(tmp_path: Path, start: str) -> None:
    settings = DataSettings(source=f"{tmp_path}/rows.csv")
    pl.DataFrame({"kg": ["8,627", "6,514"] * 45, "y": ["no", "yes"] * 45}).write_csv(settings.source, separator=";")
    with pytest.raises(DataError, match=r"found that `8,627` may mean 8627 \(`1,234.5`\) or 8.627 \(`1234,5`\); name") as refused:
        draft_dataset(settings, 0)
    found = draft_dataset(settings.model_copy(update=read_flags(refused.value, start)), 0)
    assert found.source.frame["kg"][0] == {ADVICE[0]: 8627, ADVICE[1]: 8.627}[start]


@pytest.mark.parametrize(
    ("cells", "notation", "values"),
    [
        (["01/02/2024", "03/04/2024"], "%m/%d/%Y", [datetime(2024, 1, 2), datetime(2024, 3, 4)]),
        (["1.250 €", "950 €"], "1.234,5", [1250, 950]),
        (["1.250 €", "950 €"], "1234.5", [1.25, 950]),
        (["3,750", "1,234"], "1234,5", [3.75, 1.234]),
        (["3,750", "1,234"], "1,234", [3750, 1234]),
        (["5. Mai 2024", "6. März 2024"], "%d. %B %Y", [datetime(2024, 5, 5), datetime(2024, 3, 6)]),
        (["5 de mayo de 2024", "6 de enero de 2024"], "%d de %B de %Y", [datetime(2024, 5, 5), datetime(2024, 1, 6)]),
        (["(5)", "(6)"], "1234.5", [-5, -6]),
        (["01/02/2024", "03-04-24"], "%m/%d/%Y | %m-%d-%y", [datetime(2024, 1, 2), datetime(2024, 3, 4)]),
    ],
)
def test_the_settings_say_how_a_column_is_written(tmp_path: Path, cells: list[str], notation: str, values: list[Any]) -> None:
    settings = DataSettings(source=f"{tmp_path}/rows.csv", formats={"c": notation})
    pl.DataFrame(make(c=cells * (N // 2))).write_csv(settings.source)
    features = type_features(settings, open_source(settings.source).read())
    assert features.frame["c"][:2].to_list() == values


def test_a_notation_that_fits_no_cell_or_means_nothing_is_refused(tmp_path: Path) -> None:
    columns = make(c=["01/02/2024", "03/04/2024"] * (N // 2))
    for notation, message in (
        (
            "%Y-%m-%d",
            r"row 1 of .*, column `c`: expected a date written as `2026-12-31`, found '01/02/2024' \(and 89 more such rows\)",
        ),
        (
            "%Q",
            r"data\.formats, column `c`: expected text, and a date as `%d/%m/%Y` or a number as `1\.234,5`, found String and '%Q'",
        ),
    ):
        with pytest.raises(DataError, match=message):
            draft(tmp_path, columns, formats={"c": notation})
    with pytest.raises(DataError, match=r"data\.formats: expected a column of .*, found no `d`"):
        draft(tmp_path, columns, formats={"d": "%Y"})


def test_one_category_among_dates_keeps_its_column_if_it_is_named(tmp_path: Path) -> None:
    found = draft(tmp_path, make(sold=["01/02/2024", "03/04/2024"] * (N // 2)), kinds={"sold": "category"})
    assert isinstance(found.columns[0], CategoricalColumn)


@pytest.mark.parametrize(
    ("cells", "kind", "values"),
    [
        (["007", "012"], "number", [7, 12]),
        (["1,250.5 kg", "950 kg"], "number", [1250.5, 950]),
        (["7:45", "12:30"], "number", [7.75, 12.5]),
        (["20240131", "20231224"], "date", [datetime(2024, 1, 31), datetime(2023, 12, 24)]),
        (["2024-01-31", "2023-12-24"], "date", [datetime(2024, 1, 31), datetime(2023, 12, 24)]),
        (["31/12/2024", "24/12/2023"], "date", [datetime(2024, 12, 31), datetime(2023, 12, 24)]),
        (["1.5", "2.5"], "category", ["1.5", "2.5"]),
    ],
)
def test_a_column_holds_what_the_settings_say(tmp_path: Path, cells: list[str], kind: Any, values: list[Any]) -> None:
    settings = DataSettings(source=f"{tmp_path}/rows.csv", kinds={"c": kind})
    pl.DataFrame(make(c=cells * (N // 2))).write_csv(settings.source)
    features = type_features(settings, open_source(settings.source).read())
    assert features.frame["c"][:2].to_list() == values


@pytest.mark.parametrize(
    ("cells", "settings", "message"),
    [
        (
            ["5", "five", "7"],
            {"kinds": {"c": "number"}},
            r"row 2 of .*, line 3, column `c`: expected a number, found 'five' \(and 29 more such rows\); correct .* data\.kinds",
        ),
        (
            ["$1,250", "$950", "x"],
            {"kinds": {"c": "number"}},
            r"row 3 of .*, column `c`: expected a number written as `1,234.5` with `\$`, found 'x' \(and 29 more such rows\)",
        ),
        (
            ["yesterday", "2024-01-31", "2024-01-30"],
            {"kinds": {"c": "date"}},
            r"row 1 of .*, column `c`: expected an ISO date or date-time, found 'yesterday'",
        ),
        (
            ["1,250", "3,750", "1,000"],
            {"kinds": {"c": "number"}, "formats": {"x": "1.5"}},
            r"data\.formats, column `x`: expected text, and a date",
        ),
        (
            ["01/02/2024", "03/04/2024", "05/06/2024"],
            {"kinds": {"c": "date"}},
            r"column `c`: expected dates with one meaning, found that `.*` may mean .*; name the right notation in data\.formats",
        ),
        (
            ["1.250", "3.5", "1.000"],
            {"kinds": {"c": "date"}, "formats": {"c": "1.234,5"}},
            r"data\.kinds, column `c`: expected a kind that is written as data\.formats says, '1\.234,5', found `date`",
        ),
        (["a", "b", "c"], {"kinds": {"d": "text"}}, r"data\.kinds: expected a column of .*, found no `d` among"),
        (
            ["a", "b", "c"],
            {"kinds": {"y": "text"}},
            r"data\.kinds, column `y`: expected `category` or `number` for the target, found `text`; drop it",
        ),
    ],
)
def test_a_cell_that_is_not_what_the_settings_say_is_named(
    tmp_path: Path, cells: list[str], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        draft(tmp_path, make(c=cells * (N // 3)), **settings)


def test_numbers_of_two_meanings_are_read_like_their_neighbours_also_where_the_settings_ask_for_numbers(tmp_path: Path) -> None:
    found = draft(tmp_path, make(c=["3,750", "1234"] * (N // 2)), kinds={"c": "number"})
    assert (found.kinds["c"], found.source.frame["c"][:2].to_list()) == ("numeric", [3750, 1234])
