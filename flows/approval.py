"""Ask a person in the Prefect UI, and wait for the answer."""

import math
from typing import Literal
from uuid import UUID

from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.exceptions import FlowPauseTimeout, Pause
from prefect.flow_runs import pause_flow_run, suspend_flow_run
from prefect.input import RunInput, keyset_from_base_key, read_flow_run_input
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Running

from refit.errors import SettingsError
from refit.promotion.questions import Question, write_question
from refit.server.automations import announce_silence
from refit.server.flow_runs import find_own_deployment
from refit.settings import PromotionSettings
from refit.store.store import Store

SECONDS_BETWEEN_LOOKS = 5
SECONDS_TO_SAY_NO = 86400
"""How long the server's automation has to start a run whose time to answer is up. Afterwards, Prefect fails the run."""


class Answer(RunInput):
    """The fields of the form. `answer` has no default, so the server refuses to resume the run without it."""

    answer: Literal["approve", "reject"]
    comment: str = ""


def check_server(promotion: PromotionSettings) -> None:
    """Raise SettingsError if a person is to be asked and there is no server whose pages could ask."""
    for name, other in {"mode": "`auto` or `never`", "when_incomparable": "`keep` or `promote`"}.items():
        if getattr(promotion, name) == "ask" and not PREFECT_API_URL.value():
            raise SettingsError(
                f"promotion.{name}: expected a Prefect server, because `ask` asks on its pages, found none;"
                f" start one and set PREFECT_API_URL, or set {other}"
            )


def find_answer(question: Question) -> Answer | None:
    """Return a person's answer to the question of the run at work, or None."""
    found = read_flow_run_input(keyset_from_base_key(f"suspended-{question.form}")["response"])
    return None if found is None else Answer.model_validate(found)


def ask_person(text: str, question: Question, name: str, store: Store) -> Answer | None:
    """Have the run at work wait until a person answers on its page; None if nobody does in time.

    A run of a deployment is suspended: it ends here, and begins anew once it is answered or its time is up. Any other is paused.

    Args:
        text: Markdown, shown above the form.
        question: What is asked.
        name: Of the model.
        store: Where a suspended run finds its question again.
    """
    get_run_logger().info("waiting for a person to resume this run: %s", flow_run.ui_url)
    form, seconds = Answer.with_initial_data(description=text), math.ceil(question.timeout_seconds)
    deployment = find_own_deployment()
    if deployment is None:
        return _pause(form, question.form, seconds)
    write_question(store, name, question)  # before suspending: without it, the run would train again
    try:
        return suspend_flow_run(form, timeout=seconds + SECONDS_TO_SAY_NO, key=question.form)
    except Pause:
        announce_silence(name, UUID(question.run), deployment)
        raise


def _pause(form: type[Answer], key: str, seconds: int) -> Answer | None:
    try:
        return pause_flow_run(form, seconds, SECONDS_BETWEEN_LOOKS, key)
    except FlowPauseTimeout:
        # Without `force`, the server would fail a run that continues after its time.
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(UUID(flow_run.id), Running(), force=True)
        return None
