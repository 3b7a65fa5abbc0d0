"""A flow run in this process: quiet, with a progress bar on a terminal and plain lines elsewhere, all on stderr."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Prefect reads these on import. Its telemetry floods stderr; its console log would say everything twice.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")

from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from flows.training import train
from refit.refs import TrainingResult
from refit.settings import Settings, SettingsTree

FLOORS = ("flows", "tasks")


def run_training(settings: Settings) -> TrainingResult | BaseException:
    """Run the training flow here and return its result, or what it failed of."""
    with _report_progress(), temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        state = train(SettingsTree(**settings.model_dump()), return_state=True)
    result: TrainingResult | BaseException = state.result(raise_on_failure=False)
    return result


@contextmanager
def _report_progress() -> Iterator[None]:
    """Show what our own flows and tasks log while the context is open."""
    console = Console(stderr=True, soft_wrap=True)
    columns = (TextColumn("epoch"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        handler = _ProgressHandler(bar)
        loggers = [logging.getLogger(name) for name in ("prefect.flow_runs", "prefect.task_runs")]
        for logger in loggers:
            logger.addHandler(handler)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeHandler(handler)


class _ProgressHandler(logging.Handler):
    """Moves the bar on epochs, prints the other lines above it; without a terminal prints every line."""

    def __init__(self, bar: Progress) -> None:
        super().__init__(logging.INFO)
        self.bar = bar
        self.epochs: TaskID | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if Path(record.pathname).parent.name not in FLOORS:
            return  # Prefect's own
        if hasattr(record, "progress") and not self.bar.disable:
            if self.epochs is None:
                self.epochs = self.bar.add_task("")
            completed, total = record.progress
            figures = record.getMessage().partition(": ")[2]
            self.bar.update(self.epochs, completed=completed, total=total, description=figures)
        else:
            self.bar.console.print(record.getMessage(), markup=False, highlight=False)
