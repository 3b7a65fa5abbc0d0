import io
import random

import numpy as np
import pytest
import torch

from refit.randomness import capture_random_state, restore_random_state, seed_everything


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


WORDS = [torch.tensor([number], dtype=torch.uint8) for number in range(3)]


@pytest.fixture
def put_back(monkeypatch) -> list[torch.Tensor]:
    """What is put back of the generators of two accelerators and an Apple GPU, which this machine is said to have."""
    found: list[torch.Tensor] = []
    for module, name, value in [
        (torch.cuda, "is_initialized", True),
        (torch.cuda, "is_available", True),
        (torch.cuda, "device_count", 2),
        (torch.cuda, "get_rng_state_all", WORDS[:2]),
        (torch.backends.mps, "is_available", True),
        (torch.mps, "get_rng_state", WORDS[2]),
    ]:
        monkeypatch.setattr(module, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", found.extend)
    monkeypatch.setattr(torch.mps, "set_rng_state", found.append)
    return found


def test_the_generators_of_accelerators_are_captured_and_put_back(put_back):
    state = capture_random_state()
    assert (state["cuda"], state["mps"]) == (WORDS[:2], WORDS[2])
    restore_random_state(state)
    assert put_back == WORDS


def test_of_accelerators_that_are_not_here_nothing_is_put_back(put_back, monkeypatch):
    state = capture_random_state()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    restore_random_state(state)
    assert put_back == WORDS[:1]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    restore_random_state(state)
    assert put_back == WORDS[:1]


def test_no_accelerator_is_woken_to_capture_its_generator(put_back, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    state = capture_random_state()
    assert (state["cuda"], state["mps"]) == ([], None)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    restore_random_state(state)
    assert put_back == []
