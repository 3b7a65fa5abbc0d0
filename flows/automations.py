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
        # The runner and the worker both report a crash, a few seconds apart: `within` lets the second report pass unheeded.
        trigger=EventTrigger(
            expect={"prefect.flow-run.Crashed"},
            for_each={"prefect.resource.id"},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related={"prefect.resource.role": "flow", "prefect.resource.name": "train"},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(seconds=3),
        ),
        actions=[ChangeFlowRunState(state=StateType.SCHEDULED, name="AwaitingRetry")],
    )
    try:
        automation.id = cast(Automation, Automation.read(name=RESCHEDULE)).id
    except ValueError:
        automation.create()
    else:
        automation.update()
