"""Errors that a user can fix: each message says what was expected, what was found and what to do."""

from collections.abc import Mapping, Sequence
from typing import Any

from refit.texts import show_line


class RefitError(Exception):
    """An error that the user can act on; shown without a traceback.

    Args:
        lines: Lines of the message. Each is made safe to show, as it may quote any text.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(*map(show_line, lines))

    def __str__(self) -> str:
        return "\n".join(self.args)


class SettingsError(RefitError):
    """A setting is unknown, out of bounds, or contradicts another one or this machine."""


class DataError(RefitError):
    """A source, column or row cannot be used.

    Args:
        lines: Lines of the message.
        remedies: Settings of `data` that would let it be used as it is, to be added to those that are given; several if it may mean
            several things.
    """

    def __init__(self, *lines: str, remedies: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(*lines)
        self.remedies = list(remedies)


class TrainingError(RefitError):
    """Training has begun and cannot continue."""


class StoreError(RefitError):
    """Something in the store is missing or damaged, or the store cannot be written."""


class ConflictError(StoreError):
    """Another process has changed the same thing in the meantime; look and decide again."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
