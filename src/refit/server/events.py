"""Events that tell a Prefect server, and so its automations, what became of a model's champion."""

import asyncio
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from prefect.events import Event, emit_event
from prefect.events.clients import get_events_client
from prefect.settings import PREFECT_API_URL

from refit.errors import first_line
from refit.registry.ledger import Entry
from refit.texts import show_line

KINDS = {"promote": "promoted", "keep": "kept", "rollback": "rolled-back"}
"""Kinds of events, by the action of the ledger's entry."""
SECONDS_TO_TELL = 5
"""A server that has not taken an event by then is not told."""


def emit_decision(name: str, entry: Entry, report: str | None = None) -> None:
    """Tell the server what an entry of the ledger decided, without waiting; Prefect adds the run at work to the event.

    Args:
        name: Of the model.
        entry: Of its ledger.
        report: Where the report of the decision is.
    """
    for event in describe_decision(name, entry, report):
        emit_event(**event)


def send_decision(name: str, entry: Entry) -> None:
    """Tell the server that Prefect's settings name, if any, from outside a run; say on stderr if that fails or takes too long."""
    url = PREFECT_API_URL.value()
    if not url:
        return
    logging.disable(logging.WARNING)  # Prefect would print much about a server that is away
    try:
        asyncio.run(asyncio.wait_for(_send(describe_decision(name, entry)), SECONDS_TO_TELL))
    except Exception as error:  # the decision stands in any case
        told = f"PREFECT_API_URL: expected a Prefect server at {url} that takes an event, found {first_line(error)}"
        print(show_line(f"{told}; the alias was moved, but the server was not told"), file=sys.stderr)
    finally:
        logging.disable(logging.NOTSET)


def describe_decision(name: str, entry: Entry, report: str | None = None) -> list[dict[str, Any]]:
    """Return the event of an entry, and a second one if a person should look at the champion that the run found."""

    def refer(version: int | None) -> str | None:
        return None if version is None else f"{name}@v{version}"

    payload = {
        "version": refer(entry.after),
        "before": refer(entry.before),
        "after": refer(entry.before if entry.action == "keep" else entry.after),
        "reason": entry.why,
        "scores": entry.details.get("scores", {}),
        "report": report,
        "who": entry.who,
        "at": entry.at,
    }
    kinds = [KINDS[entry.action], *filter(None, [entry.details.get("alarm")])]
    resource = {"prefect.resource.id": f"refit.model.{name}", "prefect.resource.name": name}
    return [{"event": f"refit.champion.{kind}", "resource": resource, "payload": payload} for kind in kinds]


async def _send(events: list[dict[str, Any]]) -> None:
    async with get_events_client(reconnection_attempts=0, checkpoint_every=1) as client:
        for event in events:
            await client.emit(Event(occurred=datetime.now(UTC), **event))
