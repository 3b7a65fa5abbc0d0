import multiprocessing
import os
import re

import pytest

from refit.errors import SettingsError
from refit.runtime import forks
from refit.training.trainer import training_alone


def train_in_a_fork(results) -> None:
    try:
        with training_alone():
            results.put("trained")
    except SettingsError as error:
        results.put(str(error))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of forking with threads, which this is about
@pytest.mark.parametrize("has_trained", [False, True])
def test_a_process_that_was_forked_trains_unless_the_one_before_it_had(monkeypatch, has_trained):
    monkeypatch.setattr(forks, "_trained_in", None)
    if has_trained:
        with training_alone():
            pass
    fork = multiprocessing.get_context("fork")
    results = fork.SimpleQueue()
    process = fork.Process(target=train_in_a_fork, args=[results])
    process.start()
    process.join()
    expected = rf"process: expected a newly started one, found {process.pid}, forked from {os.getpid()}, which had trained"
    assert re.match(expected if has_trained else "trained", results.get())
