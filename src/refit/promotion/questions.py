"""Questions that suspended runs ask: kept beside the model, so that a run that begins anew goes on with its candidate."""

import contextlib
from datetime import UTC, datetime, timedelta

from pydantic import AwareDatetime, ValidationError

from refit.refs import Handle
from refit.registry.ledger import model_folder
from refit.store.store import Store

QUESTIONS = "questions"


class Question(Handle):
    """Whether a candidate shall be the champion."""

    key: str
    """Of the retraining."""
    candidate: int
    champion: int | None
    """That the candidate was compared with."""
    run: str
    """Id of the flow run that asks."""
    form: str
    """Key of the form on that run's page."""
    asked_at: AwareDatetime
    timeout_seconds: float

    @property
    def is_over(self) -> bool:
        """Whether the time to answer is up."""
        return datetime.now(UTC) >= self.asked_at + timedelta(seconds=self.timeout_seconds)


def list_questions(store: Store, name: str) -> list[Question]:
    """The questions about candidates of model `name`; a run that ended without an answer leaves its own behind."""
    paths, found = [f"{_folder(name)}/{file}" for file in store.names(_folder(name))], []
    for data in store.read_together(paths):
        with contextlib.suppress(ValidationError):  # what is damaged is asked again
            found.append(Question.model_validate_json(data or b""))
    return found


def find_question(store: Store, name: str, run: str) -> Question | None:
    """The one that this flow run asks."""
    return next((question for question in list_questions(store, name) if question.run == run), None)


def write_question(store: Store, name: str, question: Question) -> None:
    """Keep the one question about its candidate."""
    store.write(_path(name, question.candidate), question.model_dump_json(indent=1).encode())


def remove_question(store: Store, name: str, candidate: int) -> None:
    """Forget what was asked about a candidate, once it is decided."""
    store.remove(_path(name, candidate))


def _folder(name: str) -> str:
    return f"{model_folder(name)}/{QUESTIONS}"


def _path(name: str, candidate: int) -> str:
    return f"{_folder(name)}/v{candidate}.json"
