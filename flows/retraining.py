"""The retraining flow: if there is news, train a candidate, which must beat the champion."""

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from refit.flows.approval import check_server
from refit.makers import find_maker
from refit.promotion.news import find_champion, find_decision, is_reported
from refit.promotion.questions import find_question, list_questions
from refit.refs import RetrainingResult
from refit.registry.versions import read_alias
from refit.runs.keys import retraining_key
from refit.server.flow_runs import (
    DEFAULTS,
    describe_precedence,
    find_newer_run,
    find_run_at_work,
    find_waiting_run,
    name_next_runs,
    name_run,
    resolve_given,
    show_settings,
    watched,
)
from refit.server.results import KEPT
from refit.settings import Settings, SettingsTree
from refit.store.store import Store


@flow(name="retrain", flow_run_name=name_run, **KEPT)
@watched
def retrain(settings: SettingsTree = DEFAULTS, changes: SettingsTree = DEFAULTS) -> State[RetrainingResult]:
    """Train a candidate on today's data, and make it the champion if it is better; without news, do nothing.

    Args:
        settings: What is given here is kept; the environment, `.env` and `refit.toml` of the machine that runs the flow fill in
            the rest.
        changes: What is different in this run alone; all else stays as it is.
    """
    resolved = resolve_given(settings, changes)
    check_server(resolved.promotion)
    store, name = Store(resolved.store.url), resolved.name
    asked = find_question(store, name, str(flow_run.id))
    source_digests = None
    if asked is not None:  # even if the table has changed
        key = asked.key
    else:
        name_next_runs(name)
        if (reason := _find_precedence(resolved)) is not None:
            return _skip(store, name, reason)
        source_digests = find_maker(resolved.data).digest_sources(resolved)
        key = retraining_key(resolved, *source_digests)
        asking = [question.run for question in list_questions(store, name) if question.key == key]
        if (other := find_waiting_run(asking)) is not None:
            return _skip(store, name, describe_precedence(other))
    decided = find_decision(store, name, key)
    if decided is not None and find_champion(store, name) != read_alias(store, name):
        decided = None  # the champion is damaged: another is needed
    if decided is not None and is_reported(decided, store, name):
        return _skip(store, name, f"nothing new since the decision of {decided.at}")

    show_settings(settings, changes)
    from refit.flows.candidates import judge_candidate

    result = judge_candidate(resolved, source_digests, key, asked, decided)
    return Completed(name=(result.alarm or result.outcome).capitalize(), message=result.reason, data=result)


def _find_precedence(settings: Settings) -> str | None:
    """Say why another run of the same deployment goes first, if one does."""
    newer = find_newer_run(settings.schedule.max_delay_seconds)
    if newer is not None:
        return f"gives way to {newer.name}, as it starts late"
    other = find_run_at_work()
    return describe_precedence(other) if other else None


def _skip(store: Store, name: str, reason: str) -> State[RetrainingResult]:
    number = read_alias(store, name)
    champion = None if number is None else f"{name}@v{number}"
    standing = f"{champion} stays the champion" if champion else f"{name} has no champion"
    message = f"{standing}; {reason}"
    get_run_logger().info("skipped: %s", message)
    return Completed(name="Skipped", message=message, data=RetrainingResult(outcome="skipped", reason=reason, champion=champion))
