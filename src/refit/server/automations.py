"""What the Prefect server does by itself for runs of Refit's deployments."""

from collections.abc import Mapping, Sequence, Set
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events import EventTrigger, Posture, emit_event
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from refit.errors import SettingsError, first_line
from refit.server.api import AWAITING_RESTART, HEARTBEAT, RESUMING, ServerError
from refit.undocumented import RUN_COUNT

Labels = Mapping[str, str | list[str]]
"""Labels that an event must have; a list allows each of its values."""
TAG = "refit"
"""Tag of our deployments, and so of their runs. The server also looks after the runs of any other deployment that has it."""
FLOWS = ("train", "retrain", "predict")
CRASH = "refit: note that a silent run has crashed"
RESCHEDULE = "refit: start a crashed run again"
GIVE_UP = "refit: give up on runs that die before they begin"
CANCEL = "refit: end cancelled runs whose worker does not"
NOTIFY = "refit: tell of trouble with "
"""Followed by the model's name."""
NOTICE = "refit: tell of lost nights of "
"""Followed by the model's name."""
END_QUESTION = "refit: go on without an answer about "
"""Followed by the model's name."""
DEPLOYED = "refit.deployed"
"""The event after which runs of a deployment are expected."""
ASKED = "refit.question.asked"
"""The event after which a run is silent, because it is suspended. It is sent like heartbeats, and so arrives after the last one.
Prefect's own can be 15 minutes late: the server holds back events of a run that it planned less than five minutes before."""
CRASHED, CANCELLING, SUSPENDED = (f"prefect.flow-run.{state}" for state in ("Crashed", "Cancelling", "Suspended"))
TOLD = ("Failed", "TimedOut", "Crashed", "Collapsed", "Incomparable", "Damaged", "Suspended", "Paused")
"""States of a retraining that somebody should know about."""
ENDED = {
    f"prefect.flow-run.{state}"
    for state in (
        *("Completed", "Cancelled", "Failed", "TimedOut"),
        *("Promoted", "Kept", "Skipped", "Collapsed", "Incomparable", "Damaged"),
    )
}
"""A run in one of these states is over: it is not started again, nor set to Crashed. A suspended run is not over."""
BEGUN = {"prefect.flow-run.Pending", "prefect.flow-run.Running"}
BETWEEN_REPORTS = timedelta(seconds=60)
"""More than the time between two reports of one crash, 6 to 13 seconds (measured), in which another process imports the flow to
look for its hooks. A second report after the rescheduling would undo it."""
SILENCE = timedelta(seconds=300)
"""Ten heartbeats at the interval in `prefect.yaml`, and well over the 180 seconds between two if a deployment sets no interval.
More than from the last heartbeat before a reported crash to the first after the restart, up to 140 seconds: otherwise, the run
would be set to Crashed while it starts."""
TO_CANCEL = timedelta(seconds=45)
"""More than the 30 seconds that a worker gives a run to end. Less than the time until a crash is rescheduled, because the end of a
run can be called a crash before its worker reports the cancellation (seen: 44 seconds, on a busy machine). Our flows prevent it."""
MAX_ATTEMPTS = 3
"""Attempts that die before they begin."""
MAX_STARTS = 5
"""Starts of one run. A new run continues from what it kept. Training gives up earlier if it makes no progress."""
PERIODS = 1.5
"""A night is lost if no run has ended for so many periods of the schedule."""


def update_automations(
    client: SyncPrefectClient, model: str | None, period: timedelta, to_answer: timedelta, block: str | None
) -> list[str]:
    """Have the server look after runs, in place of what earlier calls have set up; return the automations' names.

    Args:
        client: Of the server.
        model: The model whose questions end in time and, with `block`, whose trouble is told; None is for what all share.
        period: The longest time between two runs of its schedule.
        to_answer: How long a person has to answer a run's question.
        block: `TYPE/NAME` of the Prefect block that is told of failed retraining and lost nights; None adds nothing of the kind.

    Raises:
        SettingsError: There is no such block.
        ServerError: The server refuses one, as Prefect Cloud may if the plan allows no more. Those that this call has added are
            then removed.
    """
    wanted = [_crash_silent_runs(), _reschedule_crashed_runs(), _give_up(), _end_cancelled_runs()]
    if model is not None:
        wanted.append(_end_question(model, to_answer))
    if model is not None and block is not None:
        number = _find_block(client, block)
        wanted += [_tell_of_failed_retraining(model, number), _tell_of_lost_nights(model, period, number)]
    made: list[UUID] = []
    for automation in wanted:
        try:
            found = client.read_automations_by_name(automation.name)
            if found and found[0].model_dump(exclude={"id"}) == automation.model_dump():
                continue  # an update would make the server forget how long it has watched a run
            if found:
                client.update_automation(found[0].id, automation)
            else:
                made.append(client.create_automation(automation))
        except PrefectHTTPStatusError as error:
            for identity in made:
                client.delete_automation(identity)
            raise ServerError(
                f"automations: expected the server to take {len(wanted)}, found that it refuses {automation.name!r}:"
                f" {first_line(error)}; make room for {len(wanted)} there, or on Prefect Cloud choose another plan"
            ) from error
    return [automation.name for automation in wanted]


def remove_notifications(client: SyncPrefectClient, model: str) -> None:
    """Tell nobody of the model's trouble any more."""
    _remove(client, _of_block(model))


def remove_automations_of(client: SyncPrefectClient, model: str) -> list[str]:
    """Remove those that are about one model alone; return their names."""
    return _remove(client, [*_of_block(model), f"{END_QUESTION}{model}"])


def remove_automations(client: SyncPrefectClient) -> list[str]:
    """Remove those that are about all models; return their names."""
    return _remove(client, [CRASH, RESCHEDULE, GIVE_UP, CANCEL])


def _of_block(model: str) -> list[str]:
    return [f"{NOTIFY}{model}", f"{NOTICE}{model}"]


def _remove(client: SyncPrefectClient, names: Sequence[str]) -> list[str]:
    found = [automation for name in names for automation in client.read_automations_by_name(name)]
    for automation in found:
        client.delete_automation(automation.id)
    return [automation.name for automation in found]


def announce(model: str, deployment: UUID) -> None:
    """Have the server expect the first run of a deployment that retrains, as if a run had just ended."""
    emit_event(DEPLOYED, {"prefect.resource.id": f"prefect.deployment.{deployment}"}, related=_relate(model, deployment))


def announce_silence(model: str, run: UUID, deployment: UUID) -> None:
    """Have the server expect no heartbeats of a run of such a deployment, because it is suspended."""
    emit_event(ASKED, {"prefect.resource.id": f"prefect.flow-run.{run}"}, related=_relate(model, deployment))


def _relate(model: str, deployment: UUID) -> list[dict[str, str]]:
    return [
        {"prefect.resource.role": "flow", "prefect.resource.id": "prefect.flow.retrain", "prefect.resource.name": "retrain"},
        {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"},
        {
            "prefect.resource.role": "deployment",
            "prefect.resource.id": f"prefect.deployment.{deployment}",
            "prefect.resource.name": model,
        },
    ]


def _crash_silent_runs() -> AutomationCore:
    return AutomationCore(
        name=CRASH,
        description="A run without a heartbeat for five minutes died with its worker, which could not report it.",
        trigger=_watch_last(HEARTBEAT, SILENCE, unless=ENDED | {CRASHED, SUSPENDED, ASKED}),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=f"No heartbeat for {SILENCE.seconds} seconds.")],
    )


def _reschedule_crashed_runs() -> AutomationCore:
    """A run that starts again keeps its id."""
    match: Labels = {RUN_COUNT: [str(count) for count in range(MAX_STARTS)]}
    return AutomationCore(
        name=RESCHEDULE,
        description=f"A run whose process died continues from its last checkpoint; it is started {MAX_STARTS} times at most.",
        # Wait for the last report: the run's runner and, seconds later, its worker both report a crash, and two reschedulings would
        # start two attempts. If one hits a run that is at work again, the store's lock keeps the attempts apart.
        trigger=_watch_last(CRASHED, BETWEEN_REPORTS, match, unless=ENDED | BEGUN),
        actions=[ChangeFlowRunState(state=StateType.SCHEDULED, name=AWAITING_RESTART)],
    )


def _give_up() -> AutomationCore:
    """A run that begins counts its starts and can give up by itself. On a worker without Refit, no run begins."""
    of_attempts = {"prefect.resource.id", RUN_COUNT}
    message = f"Died {MAX_ATTEMPTS} times before it began: see the worker's log, then start a new run."
    return AutomationCore(
        name=GIVE_UP,
        description=f"A run that dies {MAX_ATTEMPTS} times before it begins has failed.",
        trigger=_watch(for_each=of_attempts, threshold=MAX_ATTEMPTS, expect={CRASHED}, within=timedelta(hours=1)),
        actions=[ChangeFlowRunState(state=StateType.FAILED, message=message)],
    )


def _end_cancelled_runs() -> AutomationCore:
    """Otherwise, a run whose worker died while cancelling it would count as crashed or silent, and start again."""
    return AutomationCore(
        name=CANCEL,
        description="A run that somebody cancelled while its worker was away is over, and does not start again.",
        trigger=_watch_last(CANCELLING, TO_CANCEL, unless=ENDED),
        actions=[ChangeFlowRunState(state=StateType.CANCELLED, message="Its worker did not report that it ended.")],
    )


def _end_question(model: str, to_answer: timedelta) -> AutomationCore:
    within = max(to_answer, timedelta(seconds=10))  # the least that the server accepts
    events = ENDED | BEGUN | {SUSPENDED, f"prefect.flow-run.{RESUMING}"}
    return AutomationCore(
        name=f"{END_QUESTION}{model}",
        description="A retraining that nobody has answered in time continues, and rejects its candidate.",
        trigger=_watch(Posture.Proactive, retrains=model, after={SUSPENDED}, expect=events, within=within),
        actions=[ChangeFlowRunState(state=StateType.SCHEDULED, name=RESUMING, message=f"Nobody answered within {to_answer}.")],
    )


def _find_block(client: SyncPrefectClient, block: str) -> UUID:
    kind, _, name = block.partition("/")
    try:
        return client.read_block_document_by_name(name, kind).id
    except ObjectNotFound as error:
        raise SettingsError(
            f"--notify: expected TYPE/NAME of a Prefect block, found no block {block};"
            " `prefect block ls` lists blocks, and the Prefect UI can create one"
        ) from error


def _tell_of_failed_retraining(model: str, block: UUID) -> AutomationCore:
    return AutomationCore(
        name=f"{NOTIFY}{model}",
        description="A retraining failed or crashed, or a person should look at the champion, or answer a question.",
        trigger=_watch(retrains=model, expect={f"prefect.flow-run.{state}" for state in TOLD}),
        actions=[
            SendNotification(
                block_document_id=block,
                subject="{{ flow_run.name }}: {{ flow_run.state.name }}",
                body="{{ flow_run.state.message or 'It waits on its page for an answer.' }}\n\n{{ (flow_run|ui_url) or '' }}",
            )
        ],
    )


def _tell_of_lost_nights(model: str, period: timedelta, block: UUID) -> AutomationCore:
    within = max(PERIODS * period, timedelta(seconds=10))  # the least that the server accepts
    events = ENDED | {DEPLOYED}
    return AutomationCore(
        name=f"{NOTICE}{model}",
        description="No retraining has ended for one and a half periods of its schedule.",
        trigger=_watch(Posture.Proactive, for_each=set(), retrains=model, after=events, expect=events, within=within),
        actions=[
            SendNotification(
                block_document_id=block,
                subject=f"retrain/{model}: no run has ended for {within}",
                body="Look at `refit status`: is a worker online, and has the last run ended?",
            )
        ],
    )


def _watch_last(event: str, within: timedelta, match: Labels | None = None, unless: Set[str] = frozenset()) -> EventTrigger:
    """Watch for an event of a run that is not followed in time by another of its kind or by one of `unless`.

    The server reads before it writes down such an event. If something else writes in between, SQLite refuses, and the server
    handles the event again, unless `refit server` started it.
    """
    return _watch(Posture.Proactive, match, after={event}, expect={event, *unless}, within=within)


def _watch(
    posture: Posture = Posture.Reactive,
    match: Labels | None = None,
    retrains: str | None = None,
    for_each: Set[str] = frozenset({"prefect.resource.id"}),
    threshold: int = 1,
    **fields: Any,
) -> EventTrigger:
    """Watch each run of a deployment that has our tag, whatever its flow is called; runs from a terminal are left to their users.

    Args:
        posture: Whether to act on events, or on their absence.
        match: Labels of the event, besides those of a run.
        retrains: Watch only the retraining of this model. Heartbeats do not name the model.
        for_each: Labels whose values are counted separately.
        threshold: The count at which to act.
        **fields: Other fields of the trigger.
    """
    of_run = {"prefect.resource.id": ["prefect.flow-run.*", "prefect.deployment.*"]}
    of_deployment: dict[str, str] = {"prefect.resource.role": "deployment"}
    related: list[dict[str, str]] = [{"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"}, of_deployment]
    if retrains is not None:
        of_deployment["prefect.resource.name"] = retrains
        related.append({"prefect.resource.role": "flow", "prefect.resource.name": "retrain"})
    return EventTrigger(
        for_each=set(for_each),
        match={**of_run, **(match or {})},
        match_related=[*related],
        posture=posture,
        threshold=threshold,
        **fields,
    )
