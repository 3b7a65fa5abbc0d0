"""The part of a retraining that trains, compares and acts. It imports torch, so `retraining` imports it only when there is news."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from uuid import uuid4

from prefect import get_run_logger
from prefect.exceptions import Pause
from prefect.runtime import flow_run

from refit.errors import DataError, RefitError, SettingsError
from refit.flows.approval import Answer, ask_person, find_answer
from refit.flows.training import build_snapshot, tell_of_wait, train_version
from refit.makers import find_maker
from refit.promotion.comparison import Verdict
from refit.promotion.news import KEY, find_champion, find_decision
from refit.promotion.questions import Question, remove_question
from refit.promotion.retraining_report import describe_outcome
from refit.refs import RetrainingResult, SavedModel
from refit.registry import versions
from refit.registry.ledger import Entry, find_newest
from refit.runs.crash_loops import forget_attempts
from refit.runs.keys import Recipe
from refit.runs.recipes import build_recipe
from refit.server.events import emit_decision
from refit.settings import PromotionSettings, Settings
from refit.store.store import Store
from refit.tasks.promotion import compare, explain_missing_rows, keep, promote
from refit.tasks.reporting import report, show_report
from refit.texts import show_line
from refit.training.trainer import training_alone

RUN = "run"
"""The key, in an entry's details, of the id of the flow run that decided."""


def judge_candidate(
    settings: Settings, source_digests: tuple[str, str | None] | None, key: str, asked: Question | None, decided: Entry | None
) -> RetrainingResult:
    """Train a candidate, compare it with the champion, promote it or not, and report.

    Args:
        settings: Of the run.
        source_digests: Of the sources, for the recipe; None if no candidate is to be trained.
        key: Of the retraining.
        asked: The question that this run asked before it was suspended.
        decided: The decision of a run that died before its report; then only the report is written.
    """
    store, recipe, seconds = Store(settings.store.url), None, dict[str, float]()
    newest = find_newest(store, settings.name)
    if decided is None and asked is None:
        find_maker(settings.data).check_slices(settings.promotion.slices, settings.data)
        champion = _find_start(settings, store)
        with training_alone(tell_of_wait):
            first_weights = (champion.held_back_digest or champion.weights_digest) if champion else None
            recipe = build_recipe(settings, source_digests, first_weights)
            number = versions.read_alias(store, settings.name)
            needed = explain_missing_rows(build_snapshot(recipe, settings), number, settings)
            entry = None if needed is None else keep(None, number, needed, {KEY: key, RUN: flow_run.id}, settings)
            if entry is not None:
                emit_decision(settings.name, entry)
                return RetrainingResult(outcome="kept", reason=entry.why, champion=_refer(settings.name, number))
            trained = train_version(recipe, settings, champion)
        candidate, seconds = trained.model, trained.seconds
    else:
        known = decided.after if decided is not None else asked.candidate if asked is not None else None
        candidate = versions.read_version(store, settings.name, known or 0)
    with _judging(candidate), _forgetting_attempts(recipe, store):
        verdict, entry = _judge(candidate, asked, decided, newest, key, settings)
    if verdict is None:
        reason = f"gives way to another run, which decided on the same recipe at {entry.at}: {entry.why}"
        get_run_logger().info("skipped: %s", show_line(reason))
        return RetrainingResult(
            outcome="skipped", reason=reason, champion=_refer(settings.name, versions.read_alias(store, settings.name))
        )
    get_run_logger().info("%s", describe_outcome(candidate.name, entry))  # the reason is in the run's state and result
    place = report(candidate, verdict, entry, settings)
    emit_decision(settings.name, entry, place)
    remove_question(store, settings.name, candidate.version)
    if recipe is not None:
        forget_attempts(recipe, store)
    return RetrainingResult(
        outcome="promoted" if entry.action == "promote" else "kept",
        alarm=verdict.alarm,
        reason=entry.why,
        champion=_refer(settings.name, entry.after if entry.action == "promote" else entry.before),
        candidate=candidate.reference,
        scores=verdict.scores,
        report=place,
        seconds=seconds,
    )


@contextmanager
def _judging(candidate: SavedModel) -> Iterator[None]:
    """Add to an error that the candidate was trained and saved."""
    try:
        yield
    except (DataError, SettingsError) as error:
        raise RefitError(f"{candidate.reference} was trained and saved, but cannot be judged: {error}") from error


@contextmanager
def _forgetting_attempts(recipe: Recipe | None, store: Store) -> Iterator[None]:
    """Forget the attempts of a run that is suspended: it did not die, and will not train again."""
    try:
        yield
    except Pause:
        if recipe is not None:
            forget_attempts(recipe, store)
        raise


def _judge(
    candidate: SavedModel, asked: Question | None, decided: Entry | None, newest: int, key: str, settings: Settings
) -> tuple[Verdict | None, Entry]:
    """Compare and act, again if another run has moved the champion; return no verdict if that run decided on the same recipe."""
    store = Store(settings.store.url)
    while True:
        entry = decided or find_decision(store, settings.name, key, since=newest)
        if decided is None and entry is not None and entry.details.get(RUN) != flow_run.id:
            return None, entry
        number = versions.read_alias(store, settings.name) if entry is None else entry.before
        judged = candidate if entry is None else versions.read_version(store, settings.name, entry.after or 0)
        with training_alone(tell_of_wait):  # training beside it would lengthen the measured time to score a row
            verdict = compare(judged, number, settings)
        entry = entry or _act_on(verdict, candidate, number, key, asked, settings)
        if entry is not None:
            return verdict, entry


def _refer(name: str, number: int | None) -> str | None:
    return None if number is None else f"{name}@v{number}"


def _find_start(settings: Settings, store: Store) -> SavedModel | None:
    """Return the version whose weights a warm start takes; None starts from new ones."""
    if not settings.training.warm_start:
        return None
    number = find_champion(store, settings.name)
    if number is None:
        get_run_logger().info("starting from new weights, as there is no undamaged champion")
        return None
    return versions.read_version(store, settings.name, number)


def _should_ask(verdict: Verdict, promotion: PromotionSettings) -> bool:
    return promotion.mode == "ask" or (
        verdict.judged_by is None and verdict.alarm is not None and promotion.when_incomparable == "ask"
    )


def _ask(
    verdict: Verdict, candidate: SavedModel, champion: int | None, key: str, asked: Question | None, settings: Settings
) -> Answer | None:
    """Ask a person, unless this run has asked already and has an answer, or its time is up."""
    is_same = asked is not None and (asked.candidate, asked.champion) == (candidate.version, champion)
    if asked is not None and is_same:
        answer = find_answer(asked)
        if answer is not None or asked.is_over:
            return answer
    title = f"Shall {candidate.reference} be the champion?"
    show_report(candidate, verdict, title, settings)
    question = Question(
        key=key,
        candidate=candidate.version,
        champion=champion,
        run=str(flow_run.id),
        form=uuid4().hex,
        asked_at=asked.asked_at if asked is not None and is_same else datetime.now(UTC),
        timeout_seconds=settings.promotion.timeout_seconds,
    )
    text = f"**{title}** Its {verdict.figures}. The report is the first of the run's artifacts."
    return ask_person(text, question, candidate.name, Store(settings.store.url))


def _act_on(
    verdict: Verdict, candidate: SavedModel, champion: int | None, key: str, asked: Question | None, settings: Settings
) -> Entry | None:
    """Promote the candidate or record why not; return None if the champion has changed since the comparison."""
    details = {
        KEY: key,
        RUN: flow_run.id,
        **verdict.model_dump(mode="json", include={"alarm", "decision", "num_left_out", "scores"}),
    }
    why, objection = verdict.reason, None
    if candidate.version == champion:  # promoted by another retraining with the same recipe
        return keep(candidate, champion, f"{candidate.reference} is the champion already", details, settings)
    if verdict.decision.is_better and settings.promotion.mode == "never":
        objection = "promotion.mode is `never`"
    elif verdict.decision.is_better and (asked or _should_ask(verdict, settings.promotion)):
        answer = _ask(verdict, candidate, champion, key, asked, settings)
        comment = f" ({answer.comment})" if answer and answer.comment else ""
        if answer is None:
            objection = f"nobody approved within {settings.promotion.timeout_seconds:g} seconds"
        elif answer.answer == "reject":
            objection = f"rejected in the Prefect UI{comment}"
        else:
            why = f"approved in the Prefect UI{comment}; {why}"
    if verdict.decision.is_better and objection is None:
        return promote(candidate, champion, why, details, settings)
    return keep(candidate, champion, f"{objection}, otherwise {why}" if objection else why, details, settings)
