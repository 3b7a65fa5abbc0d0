from datetime import datetime
from typing import Any

import polars as pl
import pytest

from refit.tables.formats import DATE_TIMES, AnyFormat, ClockFormat, DateFormat, NumberFormat, find_alike, find_formats


def number(thousands: str = "", decimal: str = ".", unit: str = "", family: str = "", negative: str = "") -> NumberFormat:
    known = {"thousands": thousands, "decimal": decimal, "unit": unit, "family": family, "negative": negative}
    return NumberFormat.model_validate(known)


def date(pattern: str, language: str = "") -> DateFormat:
    return DateFormat(pattern=pattern, language=language)


CLEAR: list[tuple[list[str], AnyFormat, list[Any]]] = [
    (["3,750", "950", "12,300,000"], number(","), [3750, 950, 12_300_000]),
    (["1,234.5", "7.25"], number(","), [1234.5, 7.25]),
    (["1,25,000", "12,345"], number(","), [125_000, 12_345]),
    (["18,7", "3"], number("", ","), [18.7, 3]),
    (["0,750", "1,500"], number("", ","), [0.75, 1.5]),
    (["1.234,5", "18,7"], number(".", ","), [1234.5, 18.7]),
    (["1.234.567", "950"], number(".", ","), [1_234_567, 950]),
    (["1 234", "12\u202f345,5"], number(" ", ","), [1234, 12_345.5]),
    (["1'234.5", "7"], number("'"), [1234.5, 7]),
    (["$1,200", "-$950.50", "$-3", "4"], number(",", unit="$"), [1200, -950.5, -3, 4]),
    (["1200 €", "3€"], number(unit="€"), [1200, 3]),
    (["Rs1250000", "Rs 5"], number(unit="Rs"), [1_250_000, 5]),
    (["18.7%", "3 %"], number(unit="%"), [18.7, 3]),
    (["3750 g", "3.5g"], number(unit="g"), [3750, 3.5]),
    (["8GB", "16GB"], number(unit="GB"), [8, 16]),
    (["\u22125", "3"], number(), [-5, 3]),
    (["5 °C", "\u22123 °C"], number(unit="°C"), [5, -3]),
    (["1e3 m", "2 m"], number(unit="m"), [1000, 2]),
    (["23. Mai 2024", "18. März 2024"], date("%d %b %Y", "German"), [datetime(2024, 5, 23), datetime(2024, 3, 18)]),
    (
        ["10-Jan-24", "26-Mai-24", "19-Mrz-24"],
        date("%d-%b-%y", "German"),
        [datetime(2024, m, d) for m, d in ((1, 10), (5, 26), (3, 19))],
    ),
    (["1er août 2024", "5 févr. 2024"], date("%d %b %Y", "French"), [datetime(2024, 8, 1), datetime(2024, 2, 5)]),
    (["1 de mayo de 2024", "2 de enero de 2023"], date("%d %b %Y", "Spanish"), [datetime(2024, 5, 1), datetime(2023, 1, 2)]),
    (
        ["3 luglio 2024 18:30", "4 maggio 2024 7:05"],
        date("%d %b %Y %H:%M", "Italian"),
        [datetime(2024, 7, 3, 18, 30), datetime(2024, 5, 4, 7, 5)],
    ),
    (["Dezember 2023", "Mai 2024"], date("%b %Y", "German"), [datetime(2023, 12, 1), datetime(2024, 5, 1)]),
    (["1 mrt 2024", "2 mei 2024"], date("%d %b %Y", "Dutch"), [datetime(2024, 3, 1), datetime(2024, 5, 2)]),
    (["5 out 2024", "6 fev 2024"], date("%d %b %Y", "Portuguese"), [datetime(2024, 10, 5), datetime(2024, 2, 6)]),
    (["(12.50)", "3.25", "-1"], number(negative="()"), [-12.5, 3.25, -1]),
    (["$(1,004.50)", "($2)", "$3"], number(",", unit="$", negative="()"), [-1004.5, -2, 3]),
    (["32,3-", "1.250,5", "7\u2212"], number(".", ",", negative="-"), [-32.3, 1250.5, -7]),
    (["12.50 EUR-", "3 EUR"], number(unit="EUR", negative="-"), [-12.5, 3]),
    (["7:45", "12:30:36"], ClockFormat(), [7.75, 12.51]),
    (["7:45 pm", "12:30 AM"], ClockFormat(), [19.75, 0.5]),
    (["31.01.2020", "1.2.2020"], date("%d.%m.%Y"), [datetime(2020, 1, 31), datetime(2020, 2, 1)]),
    (["2020/01/31", "2020/2/1"], date("%Y/%m/%d"), [datetime(2020, 1, 31), datetime(2020, 2, 1)]),
    (["31/12/2024", "01/02/2024"], date("%d/%m/%Y"), [datetime(2024, 12, 31), datetime(2024, 2, 1)]),
    (["12/31/24 8:05", "1/2/24 18:05"], date("%m/%d/%y %H:%M"), [datetime(2024, 12, 31, 8, 5), datetime(2024, 1, 2, 18, 5)]),
    (["01-Jan-10", "3-Feb-11"], date("%d-%b-%y"), [datetime(2010, 1, 1), datetime(2011, 2, 3)]),
    (["2024-01-31 10:00:00,123"], date("%Y-%m-%d %H:%M:%S,%3f"), [datetime(2024, 1, 31, 10, 0, 0, 123_000)]),
    (["31/Jan/2024:10:00:00 +0100"], date("%d/%b/%Y:%H:%M:%S %z"), [datetime(2024, 1, 31, 9)]),
    (
        ["Wed Jan 31 10:00:00 UTC 2024", "Thu Feb  1 10:00:00 UTC 2024"],
        date("%a %b %e %H:%M:%S UTC %Y"),
        [datetime(2024, 1, 31, 10), datetime(2024, 2, 1, 10)],
    ),
    (["Wed, 31 Jan 2024 10:00:00 GMT"], date("%a, %d %b %Y %H:%M:%S GMT"), [datetime(2024, 1, 31, 10)]),
    (["2024/01/31 10:00:00.5"], date("%Y/%m/%d %H:%M:%S%.f"), [datetime(2024, 1, 31, 10, 0, 0, 500_000)]),
    (
        ["2019/05/02 00:00:00+00", "2019/05/03 10:00:00+02"],
        date("%Y/%m/%d %H:%M:%S%#z"),
        [datetime(2019, 5, 2), datetime(2019, 5, 3, 8)],
    ),
    (["Mon Mar 04 11:20:09 +0000 2019"], date("%a %b %e %H:%M:%S %z %Y"), [datetime(2019, 3, 4, 11, 20, 9)]),
    (["10,000+", "500+", "0"], number(",", unit="+"), [10_000, 500, 0]),
    (["19M", "8.5M", "3"], number(family="count"), [19e6, 8.5e6, 3]),
    (["19M", "2.5k", "40K"], number(family="count"), [19e6, 2500, 40_000]),
    (["$95 B", "$1.5 M"], number(unit="$", family="count"), [95e9, 1.5e6]),
    (["48.5 Lac", "1.2 Cr"], number(family="count"), [4_850_000, 12_000_000]),
    (["300 K", "21 K"], number(unit="K"), [300, 21]),
    (["512GB", "1TB"], number(family="bytes"), [512e9, 1e12]),
    (["5 kg", "3 g"], number(family="mass"), [5000, 3]),
    (["1,70 m", "90 cm"], number("", ",", family="length"), [1.7, 0.9]),
    (["1200 sq ft", "950 sq ft"], number(unit="sq ft"), [1200, 950]),
    (["1995-07", "1996-11"], date("%Y-%m"), [datetime(1995, 7, 1), datetime(1996, 11, 1)]),
    (["Mar-98", "Dec-99"], date("%b-%y"), [datetime(1998, 3, 1), datetime(1999, 12, 1)]),
    (["January 2020", "May 2021"], date("%B %Y"), [datetime(2020, 1, 1), datetime(2021, 5, 1)]),
    (["January-2005", "May-2006"], date("%B-%Y"), [datetime(2005, 1, 1), datetime(2006, 5, 1)]),
    (["21 Mar  2012", "05 Mar 2012"], date("%d %b %Y"), [datetime(2012, 3, 21), datetime(2012, 3, 5)]),
    (["07/2019", "11/2020"], date("%m/%Y"), [datetime(2019, 7, 1), datetime(2020, 11, 1)]),
    (["March 9, 2021", "May 1, 2020"], date("%B %d, %Y"), [datetime(2021, 3, 9), datetime(2020, 5, 1)]),
    (
        ["2024-03-25", "26.03.2024", "01/04/2024", "27/03/24"],
        DateFormat(pattern="%d/%m/%Y", others=("%Y-%m-%d", "%d.%m.%Y", "%d/%m/%y")),
        [datetime(2024, 3, 25), datetime(2024, 3, 26), datetime(2024, 4, 1), datetime(2024, 3, 27)],
    ),
    (
        ["06-07-2015", "05/24/15", "5/2/2015 10:30"],
        DateFormat(pattern="%m/%d/%y", others=("%m-%d-%Y", "%m/%d/%Y %H:%M")),
        [datetime(2015, 6, 7), datetime(2015, 5, 24), datetime(2015, 5, 2, 10, 30)],
    ),
    (["26-Oct-98", "2017"], DateFormat(pattern="%Y", others=("%d-%b-%y",)), [datetime(1998, 10, 26), datetime(2017, 1, 1)]),
]


@pytest.mark.parametrize(("texts", "format", "values"), CLEAR, ids=lambda case: str(case)[:40])
def test_texts_that_are_all_written_in_one_way_are_read(texts: list[str], format: AnyFormat, values: list[Any]) -> None:
    assert find_formats(pl.Series(texts)) == [format]
    assert format.read(pl.Series([*texts, "x", None])).to_list() == [*values, None, None]
    assert type(format).model_validate_json(format.model_dump_json()) == format


@pytest.mark.parametrize(
    "texts", [["01/02/2020", "03/04/2020"], ["01/02/2020", "03-04-2020"], ["1.250 €", "950 €"], ["3,750", "1234"]]
)
def test_what_may_be_read_in_two_ways_is_left_open(texts: list[str]) -> None:
    assert len(find_formats(pl.Series(texts))) == 2


@pytest.mark.parametrize(
    ("texts", "pattern", "years"),
    [
        (["19.06.63", "24.03.49", "26.06.98", "01.01.07"], "%d.%m.%y", [1963, 1949, 1998, 2007]),
        (["21.02.41", "22.03.68"], "%d.%m.%y", [1941, 1968]),
        (["31.12.24", "30.06.45"], "%d.%m.%y", [2024, 2045]),
        (["31.12.98", "30.06.24"], "%d.%m.%y", [1998, 2024]),
        (["Mar-98", "Dec-49"], "%b-%y", [1998, 1949]),
    ],
)
def test_years_of_two_digits_are_no_years_to_come_where_a_column_speaks_of_the_past(
    texts: list[str], pattern: str, years: list[int]
) -> None:
    (format,) = find_formats(pl.Series(texts))
    assert isinstance(format, DateFormat)
    assert format.pattern == pattern
    assert format.read(pl.Series(texts)).dt.year().to_list() == years


@pytest.mark.parametrize(
    "texts",
    [
        *(["a", "b"], ["18.7%", "0.3"], ["€1", "$2"], ["5 kg", "3 m"], ["1A", "2B"], ["2.01.7"], ["192.168.1.1"]),
        *(
            ["31.02.2020"],
            ["7:75"],
            ["12-34"],
            ["1974-1"],
            ["2015-16"],
            ["- 5 -"],
            ["A1"],
            ["5", ""],
            ["1/2"],
            ["kg5"],
            ["5. Mai 2024", "5. Foo 2024"],
            ["5. Mai 2024", "5. marzo 2024"],
            ["25/03/2024", "03-26-2024"],
            ["25/03/2024", "v2"],
            ["2016", "2015-16"],
        ),
        *(["(5)", "(6)"], ["(5", "6"], ["5)", "6"], ["(5-", "6"], ["(-5)", "6"], ["5-", "(6)", "7"], ["5-", "6-"], ["-5-", "6"]),
    ],
    ids=str,
)
def test_other_texts_have_no_format(texts: list[str]) -> None:
    assert find_formats(pl.Series(texts)) == []


@pytest.mark.parametrize("pattern", DATE_TIMES)
def test_a_date_and_time_is_described_as_it_is_written(pattern: str) -> None:
    example = date(pattern).describe().split("`")[1]
    assert date(pattern).read(pl.Series([example])).dt.truncate("1s").to_list() == [datetime(2026, 12, 31, 19, 45)]


def test_dates_of_zones_that_only_have_a_name_look_like_dates() -> None:
    texts = pl.Series(["Wed Jan 31 10:00:00 CET 2024", "[31/Jan/2024:10:00:00 +0100]", "The Big 1978", "Sunday 2024"])
    assert find_formats(texts[:1]) == []
    assert find_alike(texts).to_list() == [True, True, False, False]


def test_numbers_without_signs_between_thousands_are_read_later_and_other_units_are_not() -> None:
    later = pl.Series(["1234", "1234.5", "$5", "€5", "1.234,5", "5%"])
    assert number(",", unit="$").read(later).to_list() == [1234, 1234.5, 5, None, None, None]
    assert number(".", ",", unit="€").read(later).to_list() == [1234, None, None, 5, 1234.5, None]
    assert number(negative="()").read(pl.Series(["(5)", "5-", "-5", "(5"])).to_list() == [-5, None, -5, None]
    assert number(unit="%").read(later).to_list() == [None] * 5 + [5]
    assert number(family="count").read(pl.Series(["7", "7k", "7kg", "7 GB"])).to_list() == [7, 7000, None, None]
