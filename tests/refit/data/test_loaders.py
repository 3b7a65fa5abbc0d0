from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
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


@contextmanager
def counting_operations() -> Iterator[Counter[str]]:
    """Count PyTorch's operations by name."""
    counts: Counter[str] = Counter()

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            counts[op._schema.name.removeprefix("aten::")] += 1
            return op(*args, **(kwargs or {}))

    with Counting():
        yield counts


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


def visit(device: torch.device, **given) -> tuple[list, torch.Tensor]:
    """Two epochs of training and one of evaluation, and what is drawn next."""
    torch.manual_seed(0)
    train, val = (
        build_train_loader(*make_rows(100), 32, False, device, **given),
        build_evaluation_loader(*make_rows(50), device, **given),
    )
    batches = [*train, *train, *val]
    assert {x.device for x, _ in batches} == {device}
    return [(x.cpu().tolist(), y.cpu().tolist()) for x, y in batches], torch.rand(1)


@pytest.mark.parametrize("memory", [1 << 30, 0, 3000])
def test_on_an_accelerator_rows_order_and_draws_are_those_of_the_cpu_wherever_the_rows_lie(standin, memory):
    standin.memory = memory
    device = torch.device("standin:0")
    has_room = memory > 2 * 100 * (3 * 4 + 8)
    assert (build_train_loader(*make_rows(100), 32, False, device).x.device == device) == has_room
    standin.memory = max(memory, 3000)
    assert visit(device) == visit(torch.device("cpu"))


def test_on_a_crowded_accelerator_rows_stay_on_the_cpu(standin):  # noqa: ARG001
    device = torch.device("standin:0")
    assert build_train_loader(*make_rows(100), 32, False, device, is_crowded=True).x.is_cpu
    assert visit(device, is_crowded=True) == visit(torch.device("cpu"))


def test_rows_stay_on_the_cpu_where_another_process_takes_the_room_that_there_was(standin, monkeypatch):
    monkeypatch.setattr(standin, "mem_get_info", lambda _: (1 << 40, 1 << 40))
    standin.memory = 100
    loader = build_train_loader(*make_rows(100), 32, False, torch.device("standin:0"))
    assert loader.x.is_cpu


def test_a_batch_is_copied_once_on_its_way_from_the_memory_of_the_cpu(standin):
    loader = build_train_loader(*make_rows(100), 32, False, torch.device("standin:0"), is_crowded=True)
    rows = torch.arange(32)
    with counting_operations() as counts:
        loader.gather(rows)
    assert counts == {"index_select": 2, "empty": 2, "_to_copy": 2}
    assert standin.num_waits == 0


@pytest.mark.parametrize("is_pinned", [False, True])
def test_only_from_pinned_memory_is_a_batch_sent_without_waiting(monkeypatch, is_pinned):
    sent: list[bool] = []
    empty = torch.empty
    monkeypatch.setattr(loaders, "PINNING", ("meta",) if is_pinned else ())
    monkeypatch.setattr(torch, "empty", lambda *sizes, pin_memory, **given: empty(*sizes, **given))  # noqa: ARG005
    monkeypatch.setattr(torch.Tensor, "to", lambda batch, _, non_blocking: sent.append(non_blocking) or batch)
    loader = build_train_loader(*make_rows(100), 32, False, torch.device("meta"), is_crowded=True)
    loader.gather(torch.arange(32))
    assert sent == [is_pinned, is_pinned]


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
