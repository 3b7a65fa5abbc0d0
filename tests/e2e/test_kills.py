"""Short kill campaigns; CONTRIBUTING has the commands of the full ones."""

import promotion_kills
import pytest
from kill_campaign import run_campaign

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("prefect_home")
def test_whatever_is_killed_ends_with_the_bits_of_a_run_that_nobody_disturbed(tmp_path):
    tally = run_campaign(tmp_path, num_kills=3, num_terms=1, seed=0)
    assert tally.disturbed.total() == 4
    assert tally.equal == tally.runs
    assert tally.epochs_repeated == 0
    assert tally.slow_exits == []
    assert tally.leftovers == []


def test_whatever_is_killed_while_it_promotes_or_rolls_back_leaves_one_whole_champion_and_a_true_ledger(tmp_path):
    tally = promotion_kills.run_campaign(tmp_path, num_kills=10, seed=0)
    assert tally.passed == dict.fromkeys(promotion_kills.CHECKS, tally.kills)
    assert tally.left["not made"] > 0
    assert tally.left["made with the alias behind"] + tally.left["made but not told"] > 0
    assert tally.leftovers == []
