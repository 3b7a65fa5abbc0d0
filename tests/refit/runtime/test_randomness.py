import io
import random
import time
from collections.abc import Callable
from threading import Event, Thread

import numpy as np
import pytest
import torch

from refit.models.building import probe
from refit.runtime import randomness
from refit.runtime.randomness import (
    capture_random_state,
    give_way,
    holding_generators,
    putting_generators_back,
    restore_random_state,
    seed_everything,
)


def draw() -> tuple[list[float], ...]:
    return (
        torch.rand(3).tolist(),
        torch.randn(3).tolist(),
        np.random.rand(3).tolist(),
        np.random.standard_normal(3).tolist(),
        [random.random() for _ in range(3)],
        [random.gauss(0, 1) for _ in range(3)],
    )


@pytest.mark.parametrize("seed", [7, 2**32 - 1])
def test_the_seed_is_that_of_plain_torch_numpy_and_python(seed):
    seed_everything(seed)
    found = draw()
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    assert found == draw()


def test_other_seeds_give_other_draws():
    seed_everything(0)
    first = draw()
    seed_everything(1)
    assert all(a != b for a, b in zip(first, draw(), strict=True))


@pytest.mark.parametrize("seed", [0, 2**32 - 1, 2**32, 2**63 - 1])
def test_every_seed_that_the_settings_allow_is_taken(seed):
    seed_everything(seed)
    first = draw()
    seed_everything(seed)
    assert first == draw()


def test_restored_generators_draw_what_they_drew_after_the_capture():
    seed_everything(3)
    draw()
    state = capture_random_state()
    first = draw()
    draw()
    restore_random_state(state)
    assert draw() == first


def test_half_of_a_pair_of_normals_is_kept_too():
    """Gaussian draws come in pairs in numpy and python: the second waits in the generator."""
    seed_everything(3)
    np.random.standard_normal()
    random.gauss(0, 1)
    state = capture_random_state()
    first = draw()
    restore_random_state(state)
    assert draw() == first


def test_a_state_can_be_restored_more_than_once():
    state = capture_random_state()
    first = draw()
    for _ in range(3):
        restore_random_state(state)
        assert draw() == first


def test_capturing_draws_nothing():
    seed_everything(5)
    first = draw()
    seed_everything(5)
    capture_random_state()
    assert draw() == first


def test_later_draws_do_not_change_a_captured_state():
    seed_everything(5)
    state = capture_random_state()
    words = state["torch"].clone(), state["numpy"]["state"]["key"].clone(), list(state["python"][1])
    for _ in range(700):
        draw()
    assert torch.equal(state["torch"], words[0])
    assert torch.equal(state["numpy"]["state"]["key"], words[1])
    assert state["python"][1] == words[2]


def test_a_state_survives_a_file_that_holds_no_code():
    seed_everything(5)
    draw()
    state = capture_random_state()
    first = draw()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    restore_random_state(torch.load(buffer, weights_only=True))
    assert draw() == first


def start_thread(do: Callable[[], object]) -> Thread:
    """Start a thread, and go on once it waits for the generators or is over."""
    thread = Thread(target=do, daemon=True)
    thread.start()
    while thread.is_alive() and not randomness._turns.is_anyone_waiting():
        time.sleep(1e-4)
    return thread


@holding_generators()
def seed_in_turn() -> None:
    seed_everything(9)


def test_who_holds_the_generators_has_them_alone():
    seed_everything(3)
    expected = draw()
    with holding_generators():
        seed_everything(3)
        start_thread(seed_in_turn)
        assert draw() == expected


def test_who_gives_way_lets_a_waiting_thread_in_and_has_the_generators_as_before():
    seed_everything(3)
    expected = draw()
    with holding_generators():
        seed_everything(3)
        thread = start_thread(seed_in_turn)
        give_way()
        thread.join(20)
        assert not thread.is_alive()
        assert draw() == expected


def test_who_gives_way_to_nobody_does_nothing(monkeypatch):
    monkeypatch.setattr(randomness, "capture_random_state", None)
    with holding_generators():
        give_way()


def test_who_does_not_hold_the_generators_lets_nobody_in():
    with holding_generators():
        waiting, other = start_thread(seed_in_turn), start_thread(give_way)
        other.join(20)
        assert [waiting.is_alive(), other.is_alive()] == [True, False]


def test_the_end_of_an_inner_block_lets_nobody_in():
    with holding_generators():
        with holding_generators(for_an_epoch=True), putting_generators_back():
            pass
        thread = start_thread(seed_in_turn)
        thread.join(0.05)
        assert thread.is_alive()
    thread.join(20)
    assert not thread.is_alive()


def test_an_epoch_gives_way_to_no_other_epoch():
    """They would change places at every step."""
    thread = Thread(target=holding_generators(for_an_epoch=True)(lambda: None), daemon=True)
    with holding_generators(for_an_epoch=True):
        thread.start()
        until = time.monotonic() + 0.1
        while time.monotonic() < until and thread.is_alive():
            give_way()
        assert thread.is_alive()
    thread.join(20)
    assert not thread.is_alive()


def test_after_an_exception_the_generators_are_put_back_and_free():
    @putting_generators_back()
    def draw_and_fail() -> None:
        draw()
        raise ValueError("full")

    seed_everything(3)
    expected = draw()
    seed_everything(3)
    with pytest.raises(ValueError, match="full"):
        draw_and_fail()
    thread = start_thread(putting_generators_back()(draw))
    thread.join(20)
    assert not thread.is_alive()
    assert draw() == expected


def test_an_interruption_while_others_have_their_turn_leaves_it_to_them(monkeypatch):
    is_inside, may_end = Event(), Event()

    @holding_generators()
    def stay() -> None:
        is_inside.set()
        may_end.wait(20)

    def interrupt() -> None:
        assert is_inside.wait(20)
        raise KeyboardInterrupt

    @holding_generators()
    def give_way_and_be_interrupted() -> None:
        threads.append(start_thread(stay))
        monkeypatch.setattr(randomness._turns, "take", interrupt)
        give_way()

    threads: list[Thread] = []
    with pytest.raises(KeyboardInterrupt):
        give_way_and_be_interrupted()
    monkeypatch.undo()
    threads.append(start_thread(seed_in_turn))
    threads[1].join(0.05)
    assert threads[1].is_alive()
    may_end.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_a_thread_that_waits_to_probe_a_model_leaves_the_precision_of_products_until_its_turn_and_after():
    torch.set_float32_matmul_precision("medium")
    try:
        with holding_generators():
            thread = start_thread(lambda: probe(torch.nn.Linear(2, 2), torch.ones(2, 2)))
            assert torch.get_float32_matmul_precision() == "medium"
        thread.join(20)
        assert not thread.is_alive()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
