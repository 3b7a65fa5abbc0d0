import subprocess
import sys

import pytest

from refit.promotion.news import KEY, find_champion, find_decision, is_reported
from refit.registry.ledger import append_entry
from refit.registry.versions import add_version, move_alias, report_path
from refit.runs.keys import retraining_key
from refit.settings import resolve_settings

SOURCE = "1" * 64


def key_of(given: dict, source: str = SOURCE, test_source: str | None = None) -> str:
    return retraining_key(resolve_settings(given)[0], source, test_source)


@pytest.mark.parametrize(
    "given",
    [
        {"optimizer": {"lr": 0.5}},
        {"data": {"val": 0.3}},
        {"training": {"num_epochs": 9}},
        {"training": {"patience": 2}},
        {"training": {"warm_start": True}},
        {"training": {"refit_on_all": True}},
        {"promotion": {"min_effect": 0.01}},
        {"promotion": {"mode": "never"}},
        {"promotion": {"slices": ["x1"]}},
    ],
    ids=lambda given: next(f"{section}.{name}" for section, values in given.items() for name in values),
)
def test_what_can_lead_to_another_decision_is_news(given):
    assert key_of(given) != key_of({})


def test_other_rows_are_news():
    assert len({key_of({}), key_of({}, "2" * 64), key_of({}, test_source="2" * 64)}) == 3


@pytest.mark.parametrize(
    "given",
    [
        {"compute": {"num_threads": 1}},
        {"store": {"url": "elsewhere"}},
        {"schedule": {"max_delay_seconds": 1}},
        {"promotion": {"timeout_seconds": 1}},
        {"checkpoint": {"keep": 1}},
    ],
)
def test_what_leads_to_the_same_decision_is_no_news(given):
    assert key_of(given) == key_of({})


def test_a_decision_is_that_of_the_last_retraining_whatever_people_did_since(store):
    assert find_decision(store, "a", "key") is None
    for _ in range(2):
        add_version(store, "a", {}, {"files": {}})
    first = move_alias(store, "a", 1, expected=None, why="better", details={KEY: "key"})
    move_alias(store, "a", 2, expected=1, why="by hand")
    append_entry(store, "a", action="open", why="looked at", after=2)
    assert find_decision(store, "a", "key") == first
    assert find_decision(store, "a", "key", since=first.number) is None
    assert find_decision(store, "a", "other") is None
    kept = append_entry(store, "a", action="keep", why="no better", after=2, before=2, details={KEY: "other"})
    assert find_decision(store, "a", "other") == kept
    assert find_decision(store, "a", "key") is None, "yesterday's rows came back after others: that is news"


def test_a_decision_is_reported_once_its_report_is_there_or_its_version_is_gone(store):
    number = add_version(store, "a", {}, {"files": {}})
    entry = append_entry(store, "a", action="keep", why="no better", after=number)
    assert not is_reported(entry, store, "a")
    store.write(report_path("a", number), b"<html>")
    assert is_reported(entry, store, "a")
    assert is_reported(entry.model_copy(update={"after": 7}), store, "a")


def test_a_damaged_champion_is_none(store):
    assert find_champion(store, "a") is None
    add_version(store, "a", {}, {"files": {}})
    move_alias(store, "a", 1, expected=None, why="better")
    assert find_champion(store, "a") == 1
    store.write("models/a/v1/version.json", b'{"name": "a", "version": 1, "files": {"model.pt": "0"}}')
    assert find_champion(store, "a") is None


def test_a_night_without_news_brings_no_torch():
    """What a run needs to find that nothing has changed."""
    script = (
        "import sys; from refit.promotion import news; from refit.runs.keys import retraining_key\n"
        "from refit.tables.sources.opening import digest_sources; from refit.settings import resolve_settings\n"
        "settings, _ = resolve_settings()\n"
        "retraining_key(settings, *digest_sources(settings.data.source, None))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
