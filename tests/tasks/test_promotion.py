import pytest
from prefect import flow

from refit.errors import StoreError
from refit.refs import SavedModel
from refit.registry import versions
from refit.registry.ledger import Entry, load_ledger
from refit.registry.versions import add_version, move_alias, read_alias
from refit.settings import SettingsTree
from refit.store.store import Store
from refit.tasks.promotion import keep, promote

pytestmark = pytest.mark.usefixtures("prefect_server")

SETTINGS = SettingsTree(name="a")
SECOND = SavedModel(name="a", version=2, path="", weights_digest="")


@pytest.fixture
def two_versions(monkeypatch) -> Store:
    """Two versions, the first of them the champion; no waiting between tries."""
    store = Store(SETTINGS.store.url)
    for _ in range(2):
        add_version(store, "a", {}, {"files": {}})
    move_alias(store, "a", 1, expected=None, why="first")
    monkeypatch.setattr(promote, "retry_delay_seconds", 0)
    return store


@flow
def act(task, champion: int | None) -> Entry | None:
    return task(SECOND, champion, "better", {"figure": 0.5}, SETTINGS)


def test_a_promotion_is_written_with_what_it_rests_on(two_versions):
    entry = act(promote, 1)
    assert (entry.action, entry.before, entry.after, entry.why, entry.details) == ("promote", 1, 2, "better", {"figure": 0.5})
    assert load_ledger(two_versions, "a")[-1] == entry
    assert read_alias(two_versions, "a") == 2


def test_a_champion_that_was_replaced_meanwhile_is_told_and_no_failure(two_versions, caplog):
    assert act(promote, None) is None
    assert read_alias(two_versions, "a") == 1
    assert "expected no version, found v1" in caplog.text


def test_a_promotion_that_was_written_though_its_answer_was_lost_is_not_written_again(two_versions, monkeypatch):
    move, times = versions.move_alias, []

    def lose_the_answer(*given, **named):
        times.append(move(*given, **named))
        raise StoreError("the connection broke") from OSError("reset")

    with monkeypatch.context() as patched:
        patched.setattr(versions, "move_alias", lose_the_answer)
        assert act(promote, 1) is None
    assert len(times) == 1
    assert [entry.action for entry in load_ledger(two_versions, "a")] == ["promote", "promote"]
    assert read_alias(two_versions, "a") == 2


def test_a_refusal_is_written_and_moves_nothing(two_versions):
    entry = act(keep, 1)
    assert (entry.action, entry.alias, entry.before, entry.after, entry.why) == ("keep", "champion", 1, 2, "better")
    assert read_alias(two_versions, "a") == 1
    assert act(keep, None) is None, "v1 became the champion after the comparison"
    assert load_ledger(two_versions, "a")[-1] == entry
