import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError
from scipy import stats

from refit.tables.copies import Copies, count_copies, estimate_chances, is_more_than_chance


def draw(generator: np.random.Generator, num_rows: int, levels: tuple[int, ...]) -> pl.DataFrame:
    """Independent rows of independent columns; of the levels of a column, the first is the most frequent."""
    shares = [np.arange(size, 0, -1) / (size * (size + 1) / 2) for size in levels]
    return pl.DataFrame({f"k{i}": generator.choice(len(p), num_rows, p=p) for i, p in enumerate(shares)})


def test_a_row_is_as_likely_as_its_values_among_the_other_rows() -> None:
    frame = pl.DataFrame({"x": [1.0, 1.0, 2.0, None, float("nan")], "k": ["a", "a", "a", "b", "b"]})
    likelihoods = np.array([1 / 4 * 2 / 4, 1 / 4 * 2 / 4, 0, 1 / 4 * 1 / 4, 1 / 4 * 1 / 4])
    for numbers in (np.zeros(5, np.int64), np.array([0, 1, 0, 2, 5])):
        np.testing.assert_allclose(estimate_chances(frame, numbers, 10), stats.poisson.sf(numbers, 10 * likelihoods), atol=1e-15)
    assert estimate_chances(frame[:1], np.zeros(1, np.int64), 10).tolist() == [0]
    assert estimate_chances(frame[:2], np.zeros(2, np.int64), 10) == pytest.approx(stats.poisson.sf(0, 10))


def test_the_only_column_has_equal_rows_as_a_hypergeometric_draw_has() -> None:
    values = np.random.default_rng(0).integers(0, 100, 200)
    found = count_copies(pl.DataFrame({"x": values}), np.arange(50), np.arange(50, 200))
    others = np.bincount(values)[values[50:]] - 1
    assert found.by_chance == round(found.by_chance, 2)
    assert found.by_chance == pytest.approx((1 - stats.hypergeom.pmf(0, 199, others, 50)).sum(), rel=0.01)


@pytest.mark.parametrize("levels", [(2, 2, 2), (6, 5, 4), (30, 20, 3), (400, 300), (2000, 300), (1000,)])
def test_independent_rows_have_as_many_equal_ones_as_by_chance(levels: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    counts = [count_copies(draw(generator, 1200, levels), np.arange(1000), np.arange(1000, 1200)) for _ in range(200)]
    observed, expected = (np.array([getattr(one, name) for one in counts]) for name in ("rows", "by_chance"))
    assert observed.mean() == pytest.approx(expected.mean(), abs=1)
    assert sum(one.is_more_than_chance for one in counts) <= 6, "of 200"


def test_copies_are_more_than_chance() -> None:
    once = draw(np.random.default_rng(0), 600, (100, 100, 100))
    found = count_copies(once, np.arange(500), np.arange(500, 600))
    assert (found.rows, found.is_more_than_chance) == (0, False)
    twice = count_copies(pl.concat([once, once]), np.arange(600), np.arange(600, 1200))
    assert (twice.rows, twice.is_more_than_chance) == (600, True)
    assert twice.by_chance < 3


def test_more_than_chance_is_what_would_happen_once_in_a_thousand() -> None:
    bound = next(number for number in range(100) if is_more_than_chance(number, np.full(100, 0.05)))
    assert stats.poisson(5).sf(bound - 1) < 0.001 <= stats.poisson(5).sf(bound - 2)
    assert not is_more_than_chance(2000, np.ones(2000))
    assert is_more_than_chance(1, np.full(40, 1e-6))
    assert not is_more_than_chance(0, np.zeros(40))


def test_few_copies_among_many_rows_are_not_told() -> None:
    assert not is_more_than_chance(10, np.zeros(1000))
    assert is_more_than_chance(11, np.zeros(1000))
    assert not is_more_than_chance(5900, np.full(100_000, 0.05))
    assert is_more_than_chance(6100, np.full(100_000, 0.05))


def test_a_count_of_copies_has_no_other_fields() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Copies.model_validate({"rows": 1, "by_chance": 0.5, "is_more_than_chance": False, "share": 0.1})
