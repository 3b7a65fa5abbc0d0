import hashlib
from pathlib import Path

import polars as pl
import pytest

from refit.promotion.comparison import compare
from refit.promotion.retraining_report import describe_outcome, write_report
from refit.registry.ledger import append_entry
from refit.registry.versions import check_version, move_alias
from refit.settings import PromotionSettings

ROWS = pl.DataFrame(
    {"x0": [0.1 * n for n in range(200)], "x1": [1.0, 2.0, 4.0, 8.0] * 50, "kind": ["k", "l"] * 100, "y": ["a", "b"] * 100}
)


def digest_files(folder: str) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(folder).iterdir()}


def test_the_report_lies_beside_the_candidate_whose_files_stay_as_they_are(save_version, store):
    champion = save_version(ROWS[:120], features=("x0", "x1", "kind"))
    rows = ROWS.with_columns(kind=pl.Series(["k", "new"] * 100))
    candidate = save_version(rows, num_epochs=12, features=("x0", "x1", "kind"))
    files = digest_files(candidate.path)
    verdict = compare(candidate, champion.version, PromotionSettings(), store)
    move_alias(store, "model", 1, expected=None, why="first")
    entry = move_alias(store, "model", 2, expected=1, why=verdict.reason)

    markdown, place = write_report(candidate, verdict, entry, store, "retrain model, 2 Oct 2026 03:00")
    assert place == str(Path(candidate.path).parent / "reports/v2.html")
    page = Path(place).read_text()
    assert page.startswith("<!doctype html>")
    assert "<title>model@v2 is the champion now</title>" in page
    assert digest_files(candidate.path) == files
    check_version(store, "model", 2)
    before, now = verdict.rows_before["train"], verdict.rows_now["train"]
    accuracy = verdict.scores["model@v2"]["accuracy"]
    for part in (
        verdict.reason,
        f"| accuracy | {accuracy - verdict.scores['model@v1']['accuracy']:+.4f} | {accuracy:.4f} |",
        ", run retrain model, 2 Oct 2026 03:00.",
        "`new`",
        champion.path,
        f"| train | {before} | {now} |",
        "12, kept",
    ):
        assert part in markdown
    assert "These test rows have judged no candidate before." in markdown


@pytest.mark.parametrize(("feature", "is_warned"), [("x0", True), ("kind", False)])
def test_the_report_says_whether_the_candidate_beats_the_majority_class(save_version, store, feature, is_warned):
    candidate = save_version(ROWS, num_epochs=12, features=[feature])
    verdict = compare(candidate, None, PromotionSettings(), store)
    markdown, _ = write_report(candidate, verdict, append_entry(store, "model", action="keep", why="", after=1), store)
    assert ("**Caution:** the model does not beat the majority class" in markdown) == is_warned


@pytest.mark.parametrize(
    ("action", "before", "after", "expected"),
    [
        ("promote", None, 1, "model@v1 is the champion now"),
        ("keep", 1, 2, "model@v1 stays the champion"),
        ("keep", None, 1, "model has no champion yet"),
    ],
)
def test_an_outcome_in_a_few_words(store, action, before, after, expected):
    entry = append_entry(store, "model", action=action, why="", before=before, after=after)
    assert describe_outcome("model", entry) == expected
