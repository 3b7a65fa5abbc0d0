"""What the Prefect server does by itself for runs of Refit's deployments."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events import EventTrigger, Posture
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound

from flows.server import HEARTBEAT
from refit.errors import SettingsError

Labels = Mapping[str, str | list[str]]
"""What events must say of themselves: a text, or one of several."""
TAG = "refit"
"""Of our deployments, and so of their runs."""
FLOWS = ("train", "retrain", "predict")
CRASH = "refit: note that a silent run has crashed"
RESCHEDULE = "refit: start a crashed run again"
SCORE_AGAIN = "refit: start crashed scoring again"
NOTIFY = "refit: tell of trouble with "
"""Followed by the model's name."""
CRASHED = "prefect.flow-run.Crashed"
TOLD = ("Failed", "TimedOut", "Collapsed", "Incomparable", "Damaged")
"""States of a retraining that somebody should know of."""
BETWEEN_REPORTS = timedelta(seconds=60)
"""More than between two reports of one crash, 6 to 13 seconds (measured): meanwhile another process imports the flow, to look for
its hooks. A second report after the rescheduling would undo it."""
SILENCE = timedelta(seconds=180)
"""Six heartbeats; `prefect.yaml` sets how often they come. More than from the last one before a reported crash to the first of the
run started again, up to 140 seconds: a run found silent meanwhile would be called crashed while it starts."""


def update_automations(client: SyncPrefectClient, model: str, block: str | None) -> list[str]:
    """Have the server look after runs as this call says, whatever earlier calls said; return the automations' names.

    Args:
        client: Of the server.
        model: Whose deployments it is about; runs of others have the same done for them.
        block: `TYPE/NAME` of the Prefect block that is told of failed retraining of the model; None tells nobody.

    Raises:
        SettingsError: There is no such block.
    """
    wanted = [_crash_silent_runs(), _reschedule_crashed_runs(), _reschedule_crashed_scoring()]
    if block is None:
        remove_automations_of(client, model)
    else:
        wanted.append(_tell_of_failed_retraining(client, model, block))
    for automation in wanted:
        found = client.read_automations_by_name(automation.name)
        if found:
            client.update_automation(found[0].id, automation)
        else:
            client.create_automation(automation)
    return [automation.name for automation in wanted]


def remove_automations_of(client: SyncPrefectClient, model: str) -> list[str]:
    """Remove those that are about one model alone; return their names."""
    return _remove(client, [f"{NOTIFY}{model}"])


def remove_automations(client: SyncPrefectClient) -> list[str]:
    """Remove those that are about all models; return their names."""
    return _remove(client, [CRASH, RESCHEDULE, SCORE_AGAIN])


def _remove(client: SyncPrefectClient, names: Sequence[str]) -> list[str]:
    found = [automation for name in names for automation in client.read_automations_by_name(name)]
    for automation in found:
        client.delete_automation(automation.id)
    return [automation.name for automation in found]


def _crash_silent_runs() -> AutomationCore:
    return AutomationCore(
        name=CRASH,
        description="A run that has sent no sign of life for three minutes died with its worker, which could not say so.",
        # The last heartbeat of a run that has ended changes nothing: the server refuses to crash it.
        trigger=_watch_last(HEARTBEAT, FLOWS, SILENCE),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=f"No heartbeat for {SILENCE.seconds} seconds.")],
    )


def _reschedule_crashed_runs() -> AutomationCore:
    """Training gives up by itself after a few attempts that came no further."""
    description = "A run whose process died goes on from its last checkpoint."
    return _reschedule(RESCHEDULE, description, ["train", "retrain"], run_count="!0")


def _reschedule_crashed_scoring() -> AutomationCore:
    """Scoring keeps no count of its attempts, so the server does."""
    return _reschedule(SCORE_AGAIN, "Scoring whose process died begins anew, twice.", ["predict"], run_count=["1", "2"])


def _reschedule(name: str, description: str, flows: Sequence[str], run_count: str | list[str]) -> AutomationCore:
    """Have crashed runs that were begun so often start again, under their own id.

    Not those that never began, as on a worker without Refit: they cannot give up by themselves.
    """
    return AutomationCore(
        name=name,
        description=description,
        # After the last report: the run's runner and, seconds later, its worker both tell of a crash, and two reschedulings would
        # start two attempts. Should one hit a run that is at work again, the store's lock keeps the attempts apart.
        trigger=_watch_last(CRASHED, flows, BETWEEN_REPORTS, match={"prefect.run-count": run_count}),
        actions=[ChangeFlowRunState(state=StateType.SCHEDULED, name="AwaitingRetry")],
    )


def _tell_of_failed_retraining(client: SyncPrefectClient, model: str, block: str) -> AutomationCore:
    kind, _, name = block.partition("/")
    try:
        document = client.read_block_document_by_name(name, kind)
    except ObjectNotFound as error:
        raise SettingsError(
            f"--notify: expected TYPE/NAME of a Prefect block, found no block {block};"
            " `prefect block ls` lists them, the Prefect UI makes them"
        ) from error
    return AutomationCore(
        name=f"{NOTIFY}{model}",
        description="A retraining failed, or a person should look at the champion.",
        trigger=_watch(["retrain"], deployment=model, expect={f"prefect.flow-run.{state}" for state in TOLD}),
        actions=[
            SendNotification(
                block_document_id=document.id,
                subject="{{ flow_run.name }}: {{ flow_run.state.name }}",
                body="{{ flow_run.state.message }}\n\n{{ (flow_run|ui_url) or '' }}",
            )
        ],
    )


def _watch_last(event: str, flows: Sequence[str], within: timedelta, match: Labels | None = None) -> EventTrigger:
    """Watch for an event of a run that none of its kind follows in time.

    Of one kind alone: were another expected too, such as the run's end, the server would read before it writes, which its SQLite
    refuses, and handle that event again and again, for all automations.
    """
    return _watch(flows, Posture.Proactive, match, after={event}, expect={event}, within=within)


def _watch(
    flows: Sequence[str],
    posture: Posture = Posture.Reactive,
    match: Labels | None = None,
    deployment: str | None = None,
    **fields: Any,
) -> EventTrigger:
    """Watch each run that one of our deployments of these flows has started; runs from a terminal are their users' own.

    Args:
        flows: Their names.
        posture: Whether to act on events, or on their absence.
        match: Labels of the event, besides that it is one of a run.
        deployment: Its name, if not any; heartbeats do not tell it.
        **fields: Of the trigger.
    """
    of_deployment = {"prefect.resource.role": "deployment", **({"prefect.resource.name": deployment} if deployment else {})}
    return EventTrigger(
        for_each={"prefect.resource.id"},
        match={"prefect.resource.id": "prefect.flow-run.*", **(match or {})},
        match_related=[
            {"prefect.resource.role": "flow", "prefect.resource.name": [*flows]},
            {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"},
            of_deployment,
        ],
        posture=posture,
        threshold=1,
        **fields,
    )
