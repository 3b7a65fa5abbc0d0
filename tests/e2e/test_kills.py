"""A short kill campaign; CONTRIBUTING has the command of the full one."""

import pytest
from kill_campaign import run_campaign

pytestmark = pytest.mark.slow


def test_whatever_is_killed_ends_with_the_bits_of_a_run_that_nobody_disturbed(tmp_path):
    tally = run_campaign(tmp_path, num_kills=5, num_terms=2, seed=0)
    assert tally.disturbed.total() == 7
    assert tally.equal == tally.runs
    assert tally.epochs_repeated == 0
    assert tally.slow_exits == []
    assert tally.leftovers == []
