import copy
import math
import threading
import time
from collections.abc import Callable

import polars as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from refit.data.loaders import build_evaluation_loader, build_train_loader
from refit.data.signature import Signature
from refit.errors import RefitError, TrainingError
from refit.runtime import randomness
from refit.runtime.randomness import putting_generators_back
from refit.serving.saved_model import load_model
from refit.settings import ModelSettings, OptimizerSettings, resolve_settings
from refit.training.checkpoints import digest_weights, drop_partial, dump_state, find_partial, load_state, save_partial, save_state
from refit.training.loop import (
    EpochLog,
    PauseClock,
    TrainingState,
    best_epoch,
    build_training_state,
    choose_patience,
    count_steps,
    has_lost_patience,
    train_epoch,
)

CPU = torch.device("cpu")
NOTEBOOK_X = torch.tensor([[-1.2, 3.1], [-0.9, 2.9], [-0.5, 2.6], [2.3, -1.1], [2.7, -1.5]])
NOTEBOOK_Y = torch.tensor([0, 0, 0, 1, 1])


def make_rows(num_rows: int = 50, num_inputs: int = 4, num_classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    y = torch.randint(num_classes, (num_rows,), generator=generator)
    return torch.randn(num_rows, num_inputs, generator=generator) + y[:, None], y


def build_state(
    model: dict | None = None, optimizer: dict | None = None, num_inputs: int = 4, num_outputs: int = 3
) -> TrainingState:
    settings = (
        ModelSettings(**(model or {"hidden_sizes": [8]})),
        OptimizerSettings(**{"name": "sgd", "lr": 0.1, **(optimizer or {})}),
    )
    return build_training_state(*settings, Signature.of_numbers(num_inputs, num_outputs), seed=0, device=CPU)


def constant(lr: float):
    return lambda step: lr  # noqa: ARG005


def train_notebook(num_epochs: int = 3):
    defaults, _ = resolve_settings()
    state = build_training_state(defaults.model, defaults.optimizer, Signature.of_numbers(2, 2), seed=defaults.seed, device=CPU)
    loader = build_train_loader(NOTEBOOK_X, NOTEBOOK_Y, defaults.loader.batch_size, defaults.loader.drop_last)
    logs = [train_epoch(state, loader, constant(defaults.optimizer.lr), device=CPU) for _ in range(num_epochs)]
    return logs, state


def test_the_defaults_give_the_six_losses_of_the_notebook():
    logs, _ = train_notebook()
    losses = [loss for log in logs for loss in log.batch_losses]
    assert [f"{loss:.2f}" for loss in losses] == ["0.80", "0.82", "0.30", "0.22", "0.00", "0.00"]


def test_the_defaults_give_the_bits_of_a_plain_loop():
    logs, state = train_notebook()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    loader = DataLoader(TensorDataset(NOTEBOOK_X, NOTEBOOK_Y), batch_size=2, shuffle=True, drop_last=True)
    losses = []
    for _ in range(3):
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert [loss for log in logs for loss in log.batch_losses] == losses
    assert digest_weights(state.model.state_dict()) == digest_weights(model.state_dict())


def test_an_epoch_says_what_it_did():
    x, y = make_rows(10)
    state = build_state()
    log = train_epoch(state, build_train_loader(x, y, 4, False), constant(0.1), device=CPU)
    assert (log.epoch, state.epoch, state.step) == (1, 1, 3)
    assert len(log.batch_losses) == 3
    assert log.train_loss == pytest.approx(sum(loss * n for loss, n in zip(log.batch_losses, (4, 4, 2), strict=True)) / 10)
    assert (log.val_loss, log.val_score) == (None, None)
    assert log.seconds > 0
    assert log.rows_per_second > 0


def test_the_learning_rate_of_each_step_counts_over_the_whole_run():
    x, y = make_rows(10)
    state, asked = build_state(), []

    def rate(step: int) -> float:
        asked.append(step)
        return 0.1 / (1 + step)

    loader = build_train_loader(x, y, 4, False)
    logs = [train_epoch(state, loader, rate, device=CPU) for _ in range(2)]
    assert asked == [0, 1, 2, 3, 4, 5]
    assert [log.lr for log in logs] == [0.1 / 3, 0.1 / 6]


def test_a_rate_by_step_gives_the_weights_that_pytorchs_scheduler_gives():
    x, y = make_rows(12)
    state = build_state()
    loader = build_train_loader(x, y, 4, False)
    for _ in range(2):
        train_epoch(state, loader, lambda step: 0.5**step, device=CPU)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    for _ in range(2):
        for features, classes in DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(features), classes).backward()
            optimizer.step()
            scheduler.step()
    assert digest_weights(state.model.state_dict()) == digest_weights(model.state_dict())


@pytest.mark.parametrize(("num_rows", "batch_size"), [(24, 4), (23, 4), (22, 4), (5, 4), (3, 4), (17, 1)])
def test_accumulated_batches_equal_one_large_batch_even_where_the_last_group_is_short(num_rows, batch_size):
    x, y = make_rows(num_rows)
    small, large = build_state(), build_state()
    for _ in range(3):
        train_epoch(small, build_train_loader(x, y, batch_size, False), constant(0.1), device=CPU, accumulate_batches=3)
        log = train_epoch(large, build_train_loader(x, y, 3 * batch_size, False), constant(0.1), device=CPU)
    assert small.step == large.step
    for name, weights in large.model.state_dict().items():
        torch.testing.assert_close(small.model.state_dict()[name], weights, rtol=0, atol=1e-6)
    assert math.isfinite(log.train_loss)


def test_accumulation_over_more_batches_than_there_are_is_one_step_over_all_rows():
    x, y = make_rows(10)
    state = build_state()
    train_epoch(state, build_train_loader(x, y, 4, False), constant(0.1), device=CPU, accumulate_batches=100)
    expected = build_state()
    expected.optimizer.zero_grad()
    nn.functional.cross_entropy(expected.model(x), y).backward()
    expected.optimizer.step()
    assert state.step == 1
    for name, weights in expected.model.state_dict().items():
        torch.testing.assert_close(state.model.state_dict()[name], weights, rtol=0, atol=1e-6)


@pytest.mark.parametrize("max_grad_norm", [None, 0.01, 1e6])
def test_clipping_is_pytorchs_and_the_norm_before_it_is_logged(max_grad_norm):
    x, y = make_rows(12)
    state = build_state({"hidden_sizes": [8]}, {"lr": 0.5, "momentum": 0.9})
    log = train_epoch(state, build_train_loader(x, y, 4, False), constant(0.5), device=CPU, max_grad_norm=max_grad_norm)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for features, classes in DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(features), classes).backward()
        norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
        if max_grad_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.step()
    assert digest_weights(state.model.state_dict()) == digest_weights(model.state_dict())
    assert log.grad_norm == pytest.approx(norm, rel=1e-6)


def test_clipping_holds_the_step_to_the_norm():
    x, y = make_rows(12)
    state = build_state()
    before = torch.cat([p.detach().flatten().clone() for p in state.model.parameters()])
    log = train_epoch(state, build_train_loader(x, y, 12, False), constant(1.0), device=CPU, max_grad_norm=0.01)
    after = torch.cat([p.detach().flatten() for p in state.model.parameters()])
    assert log.grad_norm > 0.01
    assert (after - before).norm().item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_epoch_and_batch(bad):
    x, y = make_rows(12)
    state = build_state()
    loader = build_train_loader(x, y, 4, False)
    train_epoch(state, loader, constant(0.1), device=CPU)
    state.random_state = build_state().random_state  # the order of epoch 1 again, to know where the bad row comes
    torch.manual_seed(0)
    build_state()
    order = [classes for _, classes in build_train_loader(x, torch.arange(12), 4, False)]
    x[order[1][0]] = bad
    message = r"epoch 2, batch 2: expected a finite loss, found (nan|inf); lower optimizer\.lr, set training\.max_grad_norm"
    with pytest.raises(TrainingError, match=message):
        train_epoch(state, loader, constant(0.1), device=CPU)


def test_a_last_batch_of_one_row_that_the_model_cannot_take_names_the_setting():
    state = build_state()
    state.model = nn.Sequential(*state.model).insert(1, nn.BatchNorm1d(8))
    message = (
        r"^epoch 1, batch 3: expected a model that can train on a single row, .+ found Expected more than 1 .+ loader\.drop_last"
    )
    with pytest.raises(TrainingError, match=message):
        train_epoch(state, build_train_loader(*make_rows(9), 4, False), constant(0.1), device=CPU)


def test_a_long_epoch_stops_before_its_end_once_a_loss_is_not_finite():
    x, y = make_rows(1000)
    x[:] = float("nan")
    loader, visited = build_train_loader(x, y, 1, False), []

    def rate(step: int) -> float:
        visited.append(step)
        return 0.1

    with pytest.raises(TrainingError, match=r"epoch 1, batch 1: expected a finite loss, found nan"):
        train_epoch(build_state(), loader, rate, device=CPU)
    assert len(visited) < 1000


@pytest.mark.parametrize("accumulate_batches", [1, 3])
def test_the_batch_is_named_right_beyond_the_first_check(accumulate_batches):
    x, y = make_rows(1000)
    state = build_state()
    order = [row.item() for (_, (row,)) in build_train_loader(x, torch.arange(1000), 1, False)]
    x[order[700]] = float("nan")
    with pytest.raises(TrainingError, match="epoch 1, batch 701: expected a finite loss, found nan"):
        train_epoch(state, build_train_loader(x, y, 1, False), constant(1e-3), device=CPU, accumulate_batches=accumulate_batches)


def test_weights_that_the_last_step_made_infinite_are_refused_by_name():
    x, y = make_rows(4)
    x *= 1e3
    message = r"epoch 1, last batch: expected finite weights, found infinite ones or NaN in 0\.weight; lower optimizer\.lr"
    with pytest.raises(TrainingError, match=message):
        train_epoch(build_state(), build_train_loader(x, y, 4, False), constant(3e38), device=CPU)


def test_a_rate_that_fp32_cannot_hold_is_an_error_that_a_user_can_mend():
    def train_at(lr: float) -> None:
        settings, _ = resolve_settings({"optimizer": {"lr": lr}})
        loader = build_train_loader(*make_rows(4), 4, False)
        train_epoch(build_state(), loader, constant(settings.optimizer.lr), device=CPU)

    with pytest.raises(RefitError, match=r"optimizer\.lr"):
        train_at(1e39)


def test_a_failed_epoch_leaves_the_checkpoint_before_it_usable(store):
    """Trained from it again, without the failure, the epoch gives the bits of a run that never failed."""
    x, y = make_rows(20)
    model, optimizer = {"hidden_sizes": [8], "dropout": 0.3}, {"lr": 0.1, "momentum": 0.9}
    loader = build_train_loader(x, y, 4, False)
    undisturbed = build_state(model, optimizer)
    for _ in range(3):
        train_epoch(undisturbed, loader, constant(0.1), device=CPU)

    state = build_state(model, optimizer)
    train_epoch(state, loader, constant(0.1), device=CPU)
    ref = save_state(state, store)
    with pytest.raises(OSError, match="torn"):
        train_epoch(state, fail_after(loader, 2), constant(0.1), device=CPU)
    again = build_state(model, optimizer)
    load_state(ref, again, store)
    for _ in range(2):
        train_epoch(again, loader, constant(0.1), device=CPU)
    assert (again.epoch, again.step) == (undisturbed.epoch, undisturbed.step) == (3, 15)
    assert digest_weights(again.model.state_dict()) == digest_weights(undisturbed.model.state_dict())


def fail_after(loader, num_batches: int):
    torn, batches = copy.copy(loader), iter(range(num_batches))

    def gather(rows):
        if next(batches, None) is None:
            raise OSError("torn")
        return loader.gather(rows)

    torn.gather = gather
    return torn


@pytest.mark.parametrize(
    ("val_losses", "patience", "best", "has_lost"),
    [
        ([0.5], None, 1, False),
        ([0.5, 0.9, 0.1, 0.7], None, 3, False),
        ([None, None, None], None, 3, False),
        ([0.5], 1, 1, False),
        ([0.5, 0.6], 1, 1, True),
        ([0.5, 0.4], 1, 2, False),
        ([0.5, 0.5], 1, 1, True),
        ([0.5, 0.6, 0.4], 2, 3, False),
        ([0.5, 0.6, 0.7], 2, 1, True),
        ([0.5, 0.6, 0.7], 3, 1, False),
        ([0.5, 0.4, 0.6, 0.5], 2, 2, True),
        ([0.5, 0.4, 0.6, 0.3], 2, 4, False),
        ([float("inf"), 0.4], 1, 2, False),
        ([float("nan"), 0.4], 1, 2, False),
        ([0.4, float("nan")], 1, 1, True),
    ],
)
def test_the_best_epoch_is_the_first_of_the_lowest_loss_or_the_last_without_any_and_patience_counts_from_it(
    val_losses, patience, best, has_lost
):
    assert best_epoch(val_losses) == best
    assert has_lost_patience(val_losses, patience) is has_lost


@pytest.mark.parametrize(("patience", "num_batches", "expected"), [("auto", 31, 32), ("auto", 32, 16), (3, 1, 3), (None, 1, None)])
def test_patience_is_longer_where_an_epoch_has_few_batches(patience, num_batches, expected):
    assert choose_patience(patience, num_batches) == expected


def test_validation_changes_no_bit():
    x, y = make_rows(20)
    digests = []
    for val_loader in (None, build_evaluation_loader(*make_rows(30)), DataLoader(TensorDataset(*make_rows(30)), batch_size=7)):
        state = build_state({"hidden_sizes": [8], "dropout": 0.3})
        for _ in range(3):
            log = train_epoch(state, build_train_loader(x, y, 4, False), constant(0.1), device=CPU, val_loader=val_loader)
        assert (log.val_loss is None) == (val_loader is None)
        digests.append((digest_weights(state.model.state_dict()), log.batch_losses, log.train_loss))
    assert digests[0] == digests[1] == digests[2]


def test_validation_is_loss_and_accuracy_of_the_whole_split_without_dropout():
    x, y = make_rows(20)
    val_x, val_y = make_rows(33)
    state = build_state({"hidden_sizes": [8], "dropout": 0.9})
    val_loader = build_evaluation_loader(val_x, val_y)
    log = train_epoch(state, build_train_loader(x, y, 4, False), constant(0.1), device=CPU, val_loader=val_loader)
    with torch.no_grad():
        logits = state.model.eval()(val_x)
    assert log.val_loss == nn.functional.cross_entropy(logits, val_y).item()
    assert log.val_score == (logits.argmax(1) == val_y).sum().item() / 33


def test_training_starts_in_training_mode_whatever_was_done_before():
    x, y = make_rows(20)
    first, second = (build_state({"hidden_sizes": [8], "dropout": 0.5}) for _ in range(2))
    second.model.eval()
    loader = build_train_loader(x, y, 4, False)
    for state in (first, second):
        train_epoch(state, loader, constant(0.1), device=CPU)
    assert digest_weights(first.model.state_dict()) == digest_weights(second.model.state_dict())


def test_draws_between_epochs_change_no_bit():
    x, y = make_rows(20)
    digests = set()
    for num_draws in (0, 5):
        state = build_state({"hidden_sizes": [8], "dropout": 0.3})
        for _ in range(3):
            torch.rand(num_draws)
            train_epoch(state, build_train_loader(x, y, 4, False), constant(0.1), device=CPU)
        digests.add(digest_weights(state.model.state_dict()))
    assert len(digests) == 1


def test_bf16_trains_fp32_weights_that_are_near_those_of_fp32():
    x, y = make_rows(20)
    states = {}
    for precision in ("fp32", "bf16"):
        states[precision] = build_state()
        train_epoch(states[precision], build_train_loader(x, y, 4, False), constant(0.1), device=CPU, precision=precision)
    for name, weights in states["fp32"].model.state_dict().items():
        rounded = states["bf16"].model.state_dict()[name]
        assert rounded.dtype == torch.float32
        torch.testing.assert_close(rounded, weights, rtol=0, atol=0.02)
    assert digest_weights(states["fp32"].model.state_dict()) != digest_weights(states["bf16"].model.state_dict())


def test_a_long_epoch_of_small_batches_keeps_all_losses():
    x, y = make_rows(450)
    log = train_epoch(build_state(), build_train_loader(x, y, 1, False), constant(1e-3), device=CPU)
    assert len(log.batch_losses) == 450
    assert log.train_loss == pytest.approx(sum(log.batch_losses) / 450)


PAUSED_MODEL = {"hidden_sizes": [8], "dropout": 0.3}
PAUSED_OPTIMIZER = {"lr": 0.1, "momentum": 0.9}


def train_in_pieces(store, num_epochs: int, keeping: str, num_rows: int = 34) -> tuple[list[EpochLog], TrainingState, int]:
    """Epochs that pause after every step; `keeping` says what a pause goes through. Also returns the number of pauses."""
    state, num_pauses = build_state(PAUSED_MODEL, PAUSED_OPTIMIZER), 0
    x, y = make_rows(num_rows)
    val_loader = build_evaluation_loader(*make_rows(20))
    logs: list[EpochLog] = []
    while len(logs) < num_epochs:
        log = train_epoch(
            state,
            build_train_loader(x, y, 4, False),
            lambda step: 0.1 / (1 + step),
            device=CPU,
            accumulate_batches=3,
            max_grad_norm=0.5,
            val_loader=val_loader,
            should_pause=lambda: keeping != "undisturbed",
        )
        if log is not None:
            logs.append(log)
            drop_partial("key", store)
            continue
        num_pauses += 1
        if keeping == "another process":
            save_partial("key", dump_state(state), store)
            torch.manual_seed(1234)
            state = build_state(PAUSED_MODEL, PAUSED_OPTIMIZER)
            load_state(find_partial("key", store), state, store)
        elif keeping == "other draws":
            torch.rand(7)
    return logs, state, num_pauses


@pytest.mark.parametrize("keeping", ["nothing", "other draws", "another process"])
def test_pausing_after_every_step_gives_the_bits_and_the_log_of_an_undisturbed_epoch(store, keeping):
    """With dropout, momentum, clipping, groups of three batches, and a last group and batch that are short."""
    logs, state, num_pauses = train_in_pieces(store, 3, keeping)
    expected_logs, expected, _ = train_in_pieces(store, 3, "undisturbed")
    assert len(expected_logs[0].batch_losses) == 9, "eight of 4 rows and one of 2"
    assert num_pauses == 3 * 2, "after every step but the last"

    times = {"rows_per_second", "seconds"}
    assert [log.model_dump(exclude=times) for log in logs] == [log.model_dump(exclude=times) for log in expected_logs]
    assert (state.epoch, state.step, state.partial) == (expected.epoch, expected.step, None) == (3, 9, None)
    assert digest_weights(state.model.state_dict()) == digest_weights(expected.model.state_dict())
    assert save_state(state, store) == save_state(expected, store)


def test_pausing_gives_the_bits_under_adam_too_and_the_same_checkpoint(store):
    """Its state is views of vectors, before and after it is loaded."""
    refs = []
    for is_paused in (False, True):
        state = build_state(PAUSED_MODEL, {"name": "adamw", "lr": 0.01})
        while state.epoch < 3:
            loader = build_train_loader(*make_rows(34), 4, False)
            log = train_epoch(state, loader, constant(0.01), device=CPU, should_pause=lambda is_paused=is_paused: is_paused)
            if log is None:
                ref, state = save_state(state, store), build_state(PAUSED_MODEL, {"name": "adamw", "lr": 0.01})
                load_state(ref, state, store)
        refs.append(save_state(state, store))
    assert refs[0] == refs[1]


def test_batches_of_a_last_group_that_is_short_are_weighed_as_without_a_pause(store):
    """10 batches: groups of 3, 3, 3 and 1."""
    logs, state, num_pauses = train_in_pieces(store, 2, "another process", num_rows=37)
    expected_logs, expected, _ = train_in_pieces(store, 2, "undisturbed", num_rows=37)
    assert (len(logs[0].batch_losses), num_pauses) == (10, 2 * 3)
    assert [log.batch_losses for log in logs] == [log.batch_losses for log in expected_logs]
    assert [log.grad_norm for log in logs] == [log.grad_norm for log in expected_logs]
    assert digest_weights(state.model.state_dict()) == digest_weights(expected.model.state_dict())


def test_a_pause_stops_after_the_step_and_says_how_far_the_epoch_has_come():
    x, y = make_rows(40)
    state, asked = build_state(), []

    def should_pause() -> bool:
        asked.append(state.step)
        return state.step == 2

    loader = build_train_loader(x, y, 4, False)
    assert train_epoch(state, loader, constant(0.1), device=CPU, accumulate_batches=3, should_pause=should_pause) is None
    assert (state.epoch, state.step, state.num_batches, asked) == (0, 2, 6, [1, 2])
    assert train_epoch(state, loader, constant(0.1), device=CPU, accumulate_batches=3, should_pause=should_pause).epoch == 1
    assert (state.epoch, state.step, state.num_batches) == (1, 4, 0)
    assert asked == [1, 2, 3], "after the last step there is nothing to pause"


def test_the_seconds_of_an_epoch_are_those_of_all_its_pieces(monkeypatch):
    x, y = make_rows(12)
    state, loader = build_state(), build_train_loader(x, y, 4, False)
    now, pieces = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def take_two_seconds(_: int) -> float:
        now[0] += 2.0
        return 0.1

    while (log := train_epoch(state, loader, take_two_seconds, device=CPU, should_pause=lambda: True)) is None:
        pieces.append(state.partial.seconds)
        now[0] += 100.0
    assert (pieces, log.seconds, log.rows_per_second) == ([2.0, 4.0], 6.0, 2.0)


def test_a_loss_that_is_not_finite_is_named_by_its_batch_in_the_epoch_after_a_pause():
    x, y = make_rows(20)
    state = build_state()
    order = [rows for _, rows in build_train_loader(x, torch.arange(20), 4, False)]
    x[order[3][0]] = float("nan")
    state = build_state()
    message = r"epoch 1, batch 4: expected a finite loss, found nan"

    def train_all() -> None:
        while train_epoch(state, build_train_loader(x, y, 4, False), constant(0.1), device=CPU, should_pause=lambda: True) is None:
            pass

    with pytest.raises(TrainingError, match=message):
        train_all()


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_the_clock_is_due_every_so_many_seconds(clock):
    pauses = PauseClock(60, None)
    found = []
    for clock[0] in (100.0, 159.9, 160.0, 500.0):
        found.append(pauses.is_due())
    assert found == [False, False, True, True]
    pauses.restart(build_state())
    found = []
    for clock[0] in (500.0, 559.9, 560.0):
        found.append(pauses.is_due())
    assert found == [False, False, True]


def test_the_clock_is_due_at_the_deadline_and_then_stops_the_run(clock):
    pauses, state = PauseClock(60, 175.0), build_state()
    clock[0] = 160.0
    assert pauses.is_due()
    pauses.restart(state)
    clock[0] = 174.9
    assert not pauses.is_due()
    clock[0] = 175.0
    assert pauses.is_due()
    train_epoch(state, build_train_loader(*make_rows(12), 4, False), constant(0.1), device=CPU, should_pause=lambda: True)
    message = (
        r"epoch 1, batch 1: training\.timeout_seconds have passed; "
        "everything trained so far is kept, and the same command continues from there"
    )
    with pytest.raises(TrainingError, match=message):
        pauses.restart(state)


def test_a_deadline_that_has_passed_is_due_at_once(clock):
    assert PauseClock(60, clock[0] - 1).is_due()


@pytest.mark.parametrize(
    ("num_batches", "accumulate_batches", "num_epochs", "num_steps"),
    [(10, 1, 3, 30), (10, 3, 1, 4), (10, 3, 5, 20), (9, 3, 5, 15), (2, 5, 7, 7), (1, 1, 1, 1)],
)
def test_steps_are_counted_as_they_are_taken(num_batches, accumulate_batches, num_epochs, num_steps):
    assert count_steps(num_batches, accumulate_batches, num_epochs) == num_steps
    state = build_state()
    for _ in range(num_epochs):
        loader = build_train_loader(*make_rows(num_batches), 1, False)
        train_epoch(state, loader, constant(0.001), device=CPU, accumulate_batches=accumulate_batches)
    assert state.step == num_steps


def test_validation_rows_whose_logits_are_not_finite_are_named():
    x, y = make_rows(12)
    val_x, val_y = make_rows(9)
    val_x[6] = float("inf")
    message = r"row 7 of the validation rows: expected finite outputs, found \[.*\]; look for extreme values in the row"
    with pytest.raises(TrainingError, match=message):
        train_epoch(
            build_state(),
            build_train_loader(x, y, 4, False),
            constant(0.1),
            device=CPU,
            val_loader=build_evaluation_loader(val_x, val_y),
        )


def test_validation_is_in_the_precision_of_training():
    state, (x, y) = build_state(), make_rows(50)
    loaders = build_train_loader(x, y, 10, False), build_evaluation_loader(x, y)
    log = train_epoch(state, loaders[0], constant(0.1), device=CPU, precision="bf16", val_loader=loaders[1])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rounded = nn.functional.cross_entropy(state.model(x).float(), y).item()
    with torch.no_grad():
        exact = nn.functional.cross_entropy(state.model(x), y).item()
    assert log.val_loss == pytest.approx(rounded, rel=1e-6)
    assert log.val_loss != pytest.approx(exact, rel=1e-6)


def train_with_dropout(**options) -> list[float]:
    """Losses of an epoch of 300 steps."""
    state, loader = build_state({"hidden_sizes": [8], "dropout": 0.5}), build_train_loader(*make_rows(600), 2, False)
    return train_epoch(state, loader, constant(0.1), device=CPU, **options).batch_losses


def wait_until(is_true: Callable[[], bool]) -> None:
    while not is_true():
        time.sleep(1e-4)


def test_fifty_models_that_another_thread_loads_during_an_epoch_come_before_its_end_and_change_no_bit(save_version):
    rows = pl.DataFrame({f"x{i}": [float(row % (i + 3)) for row in range(30)] for i in range(3)} | {"y": [0, 1] * 15})
    path, loaded = save_version(rows).path, []
    expected = train_with_dropout()
    thread = threading.Thread(target=lambda: loaded.extend(load_model(path) for _ in range(50)), daemon=True)

    def accompany() -> bool:
        if thread.ident is None:
            thread.start()
        wait_until(lambda: randomness._turns.is_anyone_waiting() or not thread.is_alive())
        return False

    found = train_with_dropout(should_pause=accompany)
    assert not thread.is_alive()
    assert len(loaded) == 50
    assert found == expected


def test_no_step_is_taken_while_another_thread_is_about_to_put_the_generators_back():
    """What the step drew would come a second time."""
    expected, is_inside, has_stepped = train_with_dropout(), threading.Event(), threading.Event()

    def hinder() -> None:
        with putting_generators_back():
            is_inside.set()
            has_stepped.wait(0.2)

    thread = threading.Thread(target=hinder, daemon=True)

    def accompany() -> bool:
        if thread.ident is None:
            thread.start()
            wait_until(lambda: randomness._turns.is_anyone_waiting() or is_inside.is_set())
        elif thread.is_alive():
            has_stepped.set()
            thread.join()
        return False

    assert train_with_dropout(should_pause=accompany) == expected
    assert not thread.is_alive()


def test_an_epoch_that_fails_leaves_the_generators_to_others_and_the_next_one_its_bits():
    expected = train_with_dropout()

    def fail() -> bool:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        train_with_dropout(should_pause=fail)
    found: list[float] = []
    thread = threading.Thread(target=lambda: found.extend(train_with_dropout()), daemon=True)
    thread.start()
    thread.join(60)
    assert found == expected
