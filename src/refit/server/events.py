"""What became of a model's champion, as events that automations of a Prefect server can wait for."""

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
"""Of events, by the action of the ledger's entry."""
SECONDS_TO_TELL = 5
"""A server that has not taken an event by then is not told."""


def emit_decision(name: str, entry: Entry, report: str | None = None) -> None:
    """Tell the server of the run at work, which Prefect adds to the event, what an entry of the ledger decided; nobody waits.

    Args:
        name: Of the model.
        entry: Of its ledger.
        report: Where the report of the decision is.
    """
    for event in describe_decision(name, entry, report):
        emit_event(**event)


def send_decision(name: str, entry: Entry) -> None:
    """Tell the server that Prefect's settings name, if any, from outside a run; say on stderr if it cannot be told in time."""
    url = PREFECT_API_URL.value()
    if not url:
        return
    logging.disable(logging.WARNING)  # what Prefect would print of a server that is away
    try:
        asyncio.run(asyncio.wait_for(_send(describe_decision(name, entry)), SECONDS_TO_TELL))
    except Exception as error:  # whatever it is, the decision stands
        told = f"PREFECT_API_URL: expected a Prefect server at {url} that takes an event, found {first_line(error)}"
        print(show_line(f"{told}; the version is moved, and the server does not know"), file=sys.stderr)
    finally:
        logging.disable(logging.NOTSET)


def describe_decision(name: str, entry: Entry, report: str | None = None) -> list[dict[str, Any]]:
    """The event of an entry, and where a person should look at the champion that was, one more that says so."""

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
