"""The errors a user can mend: each message says what was expected, what was found and what to do."""

from refit.texts import show_line


class RefitError(Exception):
    """A mistake or a fault that the user can act on; shown without a traceback.

    Args:
        lines: Of the message; each is made fit to be shown, as what it quotes may be anything.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(*map(show_line, lines))

    def __str__(self) -> str:
        return "\n".join(self.args)


class SettingsError(RefitError):
    """A setting is unknown, out of bounds or contradicts another one or this machine."""


class DataError(RefitError):
    """A source, column or row is not what training needs."""


class TrainingError(RefitError):
    """Training began and cannot go on."""


class StoreError(RefitError):
    """What the store should hold is missing, damaged or cannot be written."""


class ConflictError(StoreError):
    """Another process has changed the same thing in the meantime; look again and decide anew."""


def first_line(error: BaseException) -> str:
    """Return what an error says, in a line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
