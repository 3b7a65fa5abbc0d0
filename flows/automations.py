"""What the Prefect server does by itself for runs of Refit's flows."""

from datetime import timedelta
from typing import cast

from prefect.automations import Automation
from prefect.client.schemas.objects import StateType
from prefect.events import EventTrigger, Posture
from prefect.events.actions import ChangeFlowRunState

RESCHEDULE = "refit: reschedule crashed runs"


def reschedule_crashed_runs() -> None:
    """Have the server start a crashed `train` run again, under its own id; calling this again changes nothing.

    The run goes on from its last checkpoint. It gives up by itself after a few attempts that came no further.
    """
    automation = Automation(
        name=RESCHEDULE,
        description="A run whose process died goes on from its last checkpoint.",
        # The runner and the worker both report a crash: with a `within` above 0, a second report that comes after the rescheduling
        # would pass unheeded, and leave the run crashed. Should it hit a run that is at work again, the store's lock keeps the
        # attempts apart.
        trigger=EventTrigger(
            expect={"prefect.flow-run.Crashed"},
            for_each={"prefect.resource.id"},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related={"prefect.resource.role": "flow", "prefect.resource.name": "train"},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[ChangeFlowRunState(state=StateType.SCHEDULED, name="AwaitingRetry")],
    )
    try:
        automation.id = cast(Automation, Automation.read(name=RESCHEDULE)).id
    except ValueError:
        automation.create()
    else:
        automation.update()
