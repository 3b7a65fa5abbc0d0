"""Questions beside a model."""

from datetime import UTC, datetime, timedelta

import pytest

from refit.promotion.questions import Question, find_question, list_questions, remove_question, write_question
from refit.store.store import Store


@pytest.fixture
def question() -> Question:
    asked_at = datetime.now(UTC) - timedelta(seconds=50)
    return Question(key="k", candidate=2, champion=1, run="a", form="f", asked_at=asked_at, timeout_seconds=60)


def test_there_is_one_question_a_candidate_until_it_is_decided(store: Store, question):
    assert list_questions(store, "toy") == []
    write_question(store, "toy", question)
    later = question.model_copy(update={"run": "b"})
    write_question(store, "toy", later)
    write_question(store, "toy", question.model_copy(update={"candidate": 3}))
    assert find_question(store, "toy", "b") == later
    assert [found.candidate for found in list_questions(store, "toy")] == [2, 3]
    remove_question(store, "toy", 2)
    assert find_question(store, "toy", "b") is None


def test_a_damaged_question_is_none_so_that_it_is_asked_again(store: Store, question):
    write_question(store, "toy", question)
    store.write("models/toy/questions/v2.json", b"{")
    assert list_questions(store, "toy") == []


def test_the_time_to_answer_is_counted_from_when_it_was_asked(question):
    assert not question.is_over
    assert question.model_copy(update={"timeout_seconds": 40}).is_over
