"""A person's word in the Prefect UI, which a run waits for."""

import math
from typing import Literal
from uuid import UUID

from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Running

from refit.errors import SettingsError
from refit.settings import PromotionSettings

SECONDS_BETWEEN_LOOKS = 5


class Answer(RunInput):
    """What the form asks for. The server refuses to resume the run without an answer, as that has no default."""

    answer: Literal["approve", "reject"]
    comment: str = ""


def check_server(promotion: PromotionSettings) -> None:
    """Raise SettingsError if a person is to be asked and there is no server whose pages could ask."""
    for name, other in {"mode": "`auto` or `never`", "when_incomparable": "`keep` or `promote`"}.items():
        if getattr(promotion, name) == "ask" and not PREFECT_API_URL.value():
            raise SettingsError(
                f"promotion.{name}: expected a Prefect server whose pages can ask, as it is `ask`, found none;"
                f" start one and set PREFECT_API_URL, or take {other}"
            )


def ask_person(question: str, key: str, timeout_seconds: float) -> Answer | None:
    """Pause the run at work until a person answers on its page; None if nobody does in time.

    Args:
        question: Markdown, shown above the form.
        key: Of the question within the run: lower-case letters, digits, dashes.
        timeout_seconds: How long to wait.
    """
    get_run_logger().info("waiting for a person to resume this run: %s", flow_run.ui_url)
    form = Answer.with_initial_data(description=question)
    try:
        return pause_flow_run(form, math.ceil(timeout_seconds), SECONDS_BETWEEN_LOOKS, f"{key}-{flow_run.run_count}")
    except FlowPauseTimeout:
        # Rules would have the server fail a run that goes on after its time.
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(UUID(flow_run.id), Running(), force=True)
        return None
