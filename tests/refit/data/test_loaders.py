import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from refit.data import loaders
from refit.data.loaders import (
    ALIGNMENT,
    EVALUATION_BATCH_SIZE,
    build_evaluation_loader,
    build_train_loader,
    choose_batch_size,
    count_batches,
)
from refit.errors import SettingsError


def make_rows(num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(num_rows * 3, dtype=torch.float32).view(num_rows, 3), torch.arange(num_rows)


@pytest.mark.parametrize(("num_rows", "size"), [(1, 32), (4_999, 32), (5_000, 256), (1_000_000, 256)])
def test_a_batch_size_that_nobody_gives_is_small_for_a_small_table(num_rows, size):
    assert choose_batch_size(None, num_rows) == size
    assert choose_batch_size(7, num_rows) == 7


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize(("num_rows", "batch_size"), [(5, 2), (6, 2), (1, 1), (7, 7), (3, 8), (100, 32), (1000, 1), (257, 256)])
def test_rows_order_and_draws_are_those_of_pytorch_own_loader_over_several_epochs(num_rows, batch_size, drop_last):
    x, y = make_rows(num_rows)
    ours = build_train_loader(x, y, batch_size, drop_last)
    torchs = DataLoader(TensorDataset(x, y), batch_size=batch_size, shuffle=True, drop_last=drop_last)
    assert len(ours) == len(torchs)
    for seed in (0, 1):
        torch.manual_seed(seed)
        expected = [(list(torchs), torch.rand(1)) for _ in range(4)]
        torch.manual_seed(seed)
        found = [(list(ours), torch.rand(1)) for _ in range(4)]
        for (batches, draw), (expected_batches, expected_draw) in zip(found, expected, strict=True):
            assert len(batches) == len(expected_batches)
            for batch, expected_batch in zip(batches, expected_batches, strict=True):
                assert torch.equal(batch[0], expected_batch[0])
                assert torch.equal(batch[1], expected_batch[1])
            assert torch.equal(draw, expected_draw)


@pytest.mark.parametrize(("group_size", "num_groups"), [(1, 1), (3, 2), (4, 5), (7, 1), (8, 20), (100, 8)])
def test_groups_hold_the_rows_asked_for_in_their_order(group_size, num_groups):
    x, y = make_rows(50)
    order = torch.randperm(50)[:43]
    groups = [
        (rows.clone(), classes.clone())
        for rows, classes in build_train_loader(x, y, 4, False).gather_groups(order, group_size, num_groups)
    ]
    assert [len(classes) for _, classes in groups] == [len(part) for part in order.split(group_size)]
    assert torch.equal(torch.cat([rows for rows, _ in groups]), x[order])
    assert torch.equal(torch.cat([classes for _, classes in groups]), y[order])


@pytest.mark.parametrize("group_size", [1, 3, 16])
def test_every_group_lies_in_memory_as_the_first_of_another_epoch_would(group_size):
    """A compiled epoch that goes on after a pause begins with a later group."""
    loader = build_train_loader(*make_rows(50), 4, False)
    assert all(x.data_ptr() % ALIGNMENT == 0 for x, _ in loader.gather_groups(torch.arange(50), group_size, 8))


def test_draws_within_an_epoch_do_not_change_its_order():
    """Dropout draws between batches, in PyTorch's own loop as in ours."""
    x, y = make_rows(10)

    def visit(loader) -> list[list[int]]:
        torch.manual_seed(0)
        seen = []
        for _ in range(2):
            for _, classes in loader:
                torch.rand(5)
                seen.append(classes.tolist())
        return seen

    assert visit(build_train_loader(x, y, 3, False)) == visit(DataLoader(TensorDataset(x, y), batch_size=3, shuffle=True))


def test_an_epoch_visits_every_row_once():
    x, y = make_rows(103)
    seen = torch.cat([classes for _, classes in build_train_loader(x, y, 10, drop_last=False)])
    assert torch.equal(seen.sort().values, y)


@pytest.mark.parametrize("num_rows", [1, EVALUATION_BATCH_SIZE, EVALUATION_BATCH_SIZE + 1, 3 * EVALUATION_BATCH_SIZE - 1])
def test_evaluation_sees_every_row_in_order(num_rows):
    x, y = make_rows(num_rows)
    loader = build_evaluation_loader(x, y)
    for _ in range(2):
        batches = list(loader)
        assert len(batches) == len(loader)
        assert torch.equal(torch.cat([rows for rows, _ in batches]), x)
        assert torch.equal(torch.cat([classes for _, classes in batches]), y)
        assert max(len(classes) for _, classes in batches) <= EVALUATION_BATCH_SIZE


def test_evaluation_leaves_the_global_generator_alone():
    loader = build_evaluation_loader(*make_rows(10))
    before = torch.get_rng_state()
    for _ in range(3):
        list(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_building_loaders_draws_nothing():
    before = torch.get_rng_state()
    build_train_loader(*make_rows(10), 2, drop_last=True)
    build_evaluation_loader(*make_rows(10))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("num_rows", "batch_size"), [(5, 2), (6, 2), (1, 1), (100, 32), (3, 8)])
def test_batches_are_counted_as_pytorch_counts_them(num_rows, batch_size):
    rows = TensorDataset(*make_rows(num_rows))
    assert count_batches(num_rows, batch_size, False) == len(DataLoader(rows, batch_size=batch_size))
    if batch_size <= num_rows:
        assert count_batches(num_rows, batch_size, True) == len(DataLoader(rows, batch_size=batch_size, drop_last=True))


def test_a_batch_larger_than_all_rows_is_refused_where_short_batches_are_left_out():
    with pytest.raises(SettingsError, match=r"loader\.batch_size: expected at most the 3 train rows, .*found 8; lower it, or set"):
        count_batches(3, 8, True)
    assert count_batches(3, 8, False) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("has_room", [True, False])
def test_on_a_gpu_rows_order_and_draws_are_those_of_the_cpu(monkeypatch, has_room):
    if not has_room:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, 0))
    x, y = make_rows(100)
    gpu, found = torch.device("cuda:0"), []
    for device in (torch.device("cpu"), gpu):
        torch.manual_seed(0)
        loader = build_train_loader(x, y, 32, False, device)
        assert loader.x.is_cuda == (has_room and device == gpu)
        batches = [batch for _ in range(2) for batch in loader]
        assert {rows.device for rows, _ in batches} == {device}
        found.append(([(rows.cpu().tolist(), classes.cpu().tolist()) for rows, classes in batches], torch.rand(1)))
    assert found[0] == found[1]


def test_a_pytorch_that_shuffles_in_another_way_is_told_of_once(monkeypatch):
    loaders._warn_of_other_order.cache_clear()
    monkeypatch.setattr(torch.utils.data.RandomSampler, "__iter__", lambda sampler: iter(range(len(sampler))))
    loader, state = build_train_loader(torch.zeros(5, 1), torch.arange(5), 2, False), torch.get_rng_state()
    with pytest.warns(UserWarning, match=r"rows are shuffled in another order than by the DataLoader of PyTorch \d") as told:
        orders = [loader.draw_order() for _ in range(2)]
    assert len(told) == 1
    torch.set_rng_state(state)
    assert torch.equal(loader.draw_order(), orders[0]), "comparing draws nothing"
    loaders._warn_of_other_order.cache_clear()
