"""Training on the accelerator of this machine, or else on a stand-in; those marked `gpu` need CUDA."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import polars as pl
import pytest
import torch
from stand_in import FIRST, backend
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import refit
from refit.data.loaders import build_evaluation_loader, build_train_loader
from refit.data.signature import Signature
from refit.engine import captured_steps
from refit.models.building import build_model
from refit.runtime.accelerators import list_accelerators, measure_free_memory, name_accelerator
from refit.runtime.devices import computing_on, prepare_compute, putting_defaults_back
from refit.settings import ComputeSettings, ModelSettings, OptimizerSettings
from refit.training import trainer
from refit.training.checkpoints import digest_weights, load_state, save_state
from refit.training.loop import EpochLog, TrainingState, build_training_state, train_epoch

X, Y = torch.randn(83, 6, generator=torch.Generator().manual_seed(1)), torch.arange(83) % 3
OPTIMIZERS = {
    "sgd": {"name": "sgd", "lr": 0.1},
    "momentum": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
    "adam": {"name": "adam", "lr": 0.01},
    "adamw": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
}


@pytest.fixture(autouse=True)
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The GPU of this machine, or else a stand-in, prepared as a run prepares it."""
    if not torch.cuda.is_available():
        request.getfixturevalue("standin")
    device = torch.device("cuda:0") if torch.cuda.is_available() else FIRST
    with putting_defaults_back():
        prepare_compute(ComputeSettings(), device)
        with computing_on(device, ComputeSettings()):
            yield device


def build_state(device: torch.device, dropout: float = 0.0, optimizer: str = "sgd") -> TrainingState:
    settings = ModelSettings(hidden_sizes=[16, 16], dropout=dropout), OptimizerSettings(**OPTIMIZERS[optimizer])
    return build_training_state(*settings, Signature.of_numbers(6, 3), 0, device)


def train(state: TrainingState, engine: str = "eager", **given: Any) -> EpochLog | None:
    loader = build_train_loader(X, Y, 4, False, state.device)
    lr = state.optimizer.defaults["lr"]
    return train_epoch(state, loader, lambda _: lr, device=state.device, engine=engine, **given)


def digest(state: TrainingState) -> str:
    return digest_weights(state.model.state_dict())


def train_plainly(device: torch.device, dropout: float, optimizer: str) -> tuple[list[float], str]:
    """The loop of a notebook on that device: losses and weights after two epochs."""
    given = dict(OPTIMIZERS[optimizer])
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[given.pop("name")]
    torch.manual_seed(0)
    model = build_model(ModelSettings(hidden_sizes=[16, 16], dropout=dropout), Signature.of_numbers(6, 3)).to(device)
    update, losses = kind(model.parameters(), **given), []
    for _ in range(2):
        for x, y in DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True):
            update.zero_grad()
            loss = functional.cross_entropy(model(x.to(device)), y.to(device))
            loss.backward()
            update.step()
            losses.append(loss.detach().cpu().item())
    return losses, digest_weights(model.state_dict())


@pytest.mark.parametrize(("optimizer", "dropout"), [*product(OPTIMIZERS, (0.0, 0.3))])
def test_epochs_have_the_bits_of_the_plain_loop_on_the_same_device(device, optimizer, dropout):
    state = build_state(device, dropout, optimizer)
    logs = [train(state) for _ in range(2)]
    assert ([loss for log in logs for loss in log.batch_losses], digest(state)) == train_plainly(device, dropout, optimizer)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_epoch_that_pauses_after_every_seventh_batch_has_the_bits_of_one_that_does_not(device, store, optimizer):
    whole, paused = (build_state(device, 0.3, optimizer) for _ in range(2))
    train(whole)
    steps = iter(range(1000))
    while train(paused, should_pause=lambda: next(steps) % 7 == 6) is None:
        kept = save_state(paused, store)
        torch.rand(3, device=device)
        paused = build_state(device, 0.3, optimizer)
        load_state(kept, paused, store)
    assert digest(paused) == digest(whole)


@contextmanager
def forbidding_waits(device: torch.device) -> Iterator[None]:
    """Fail where the CPU waits for the device."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    else:
        before = backend.num_waits
        yield
        assert backend.num_waits == before


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_nothing_waits_for_the_device_in_150_steps(device, optimizer):
    state, steps, block = build_state(device, 0.3, optimizer), iter(range(1000)), forbidding_waits(device)
    times = 40 if device.type == "cuda" else 3  # a call takes 16 recorded steps
    loader = build_train_loader(X.repeat(times, 1), Y.repeat(times), 1, False, device)

    def watch() -> bool:
        step = next(steps)
        if step == 30:
            block.__enter__()
        if step == 180:
            block.__exit__(None, None, None)
        return False

    train_epoch(state, loader, lambda _: 0.01, device=device, max_grad_norm=1.0, should_pause=watch)
    assert next(steps) > 180


@pytest.mark.parametrize("is_crowded", [False, True])
def test_rows_arrive_in_the_order_of_the_cpu_from_wherever_they_lie(device, is_crowded):
    found = []
    for place in (torch.device("cpu"), device):
        torch.manual_seed(0)
        loaders = build_train_loader(X, Y, 32, False, place, is_crowded), build_evaluation_loader(X, Y, place, is_crowded)
        found.append([(x.cpu(), y.cpu()) for loader in loaders for x, y in loader])
    assert all(torch.equal(*pair) for batches in zip(*found, strict=True) for pair in zip(*batches, strict=True))


@pytest.mark.gpu
def test_a_gpu_has_a_name_and_free_memory(device):
    assert list_accelerators()[0] == device
    assert "NVIDIA" in name_accelerator(device)
    before = measure_free_memory(device)
    taken = torch.empty(1 << 28, dtype=torch.uint8, device=device)
    assert before - measure_free_memory(device) >= taken.nbytes
    del taken
    assert before - measure_free_memory(device) < 1 << 28, "what PyTorch keeps counts as free"


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_plain_steps_of_sgd_are_recorded(device, monkeypatch, precision):
    recorded, plain = build_state(device, 0.3), build_state(device, 0.3)
    train(recorded, precision=precision)
    assert [program is None for program in captured_steps._recorded[recorded.model].values()] == [False]
    monkeypatch.setattr(captured_steps, "GRAPHS", ())
    train(plain, precision=precision)
    assert digest(recorded) == digest(plain)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("optimizer", "accumulate", "norm"),
    [("sgd", 1, None), ("momentum", 2, None), ("adam", 1, 0.5), ("adamw", 1, None), ("adamw", 2, 0.5)],
)
def test_compiled_epochs_are_eager_ones_up_to_rounding_and_the_same_again(device, optimizer, accumulate, norm):
    digests, losses = [], []
    for engine in ("eager", "compiled", "compiled"):
        state = build_state(device, 0.0, optimizer)
        log = train(state, engine, accumulate_batches=accumulate, max_grad_norm=norm)
        losses.append(log.batch_losses)
        digests.append(digest(state))
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert digests[1] == digests[2]


@pytest.mark.gpu
def test_compiled_dropout_goes_on_after_a_pause(device, store):
    whole, paused = (build_state(device, 0.3, "adamw") for _ in range(2))
    train(whole, "compiled")
    while train(paused, "compiled", should_pause=lambda: True) is None:
        kept = save_state(paused, store)
        paused = build_state(device, 0.3, "adamw")
        load_state(kept, paused, store)
    assert digest(paused) == digest(whole)


@pytest.mark.gpu
def test_auto_goes_on_where_the_compiler_fails(device, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Cannot find a working triton installation")

    monkeypatch.setattr(torch, "compile", fail)
    monkeypatch.setattr("refit.engine.fast_steps.count_steps_before", lambda *_: 0)
    lines, auto, plain = [], build_state(device, 0.3, "adamw"), build_state(device, 0.3, "adamw")
    train(auto, "auto", report=lines.append)
    train(plain)
    assert "Cannot find a working triton installation" in lines[0]
    assert digest(auto) == digest(plain)


def write_rows() -> dict[str, Any]:
    pl.DataFrame({**{f"x{i}": X[:, i].tolist() for i in range(6)}, "y": Y.tolist()}).write_csv("rows.csv")
    return {"data": {"source": "rows.csv"}, "training": {"num_epochs": 3}, "model": {"dropout": 0.3}}


@pytest.mark.gpu
def test_where_there_is_little_memory_the_rows_stay_on_the_cpu(device, monkeypatch):
    settings = {**write_rows(), "compute": {"device": "cuda"}}
    expected = refit.train({**settings, "store": {"url": "a"}}, report=lambda _: None)
    monkeypatch.setattr("refit.data.loaders.measure_free_memory", lambda _: 0)
    trainer._open_loaders.cache_clear()
    assert (
        refit.train({**settings, "store": {"url": "b"}}, report=lambda _: None).model.weights_digest
        == expected.model.weights_digest
    )
    assert list_accelerators()[0] == device


@pytest.mark.gpu
def test_memory_that_others_take_in_mid_epoch_ends_no_run(device, monkeypatch):
    settings, lines, gather = {**write_rows(), "compute": {"device": "cuda"}}, [], refit.data.loaders.ShuffledLoader.gather
    expected = refit.train({**settings, "store": {"url": "a"}}, report=lambda _: None)
    batches = iter(range(10**6))

    def take_all(loader: Any, rows: torch.Tensor) -> Any:
        if next(batches) == 5:
            torch.empty(1 << 60, dtype=torch.uint8, device=device)
        return gather(loader, rows)

    monkeypatch.setattr(refit.data.loaders.ShuffledLoader, "gather", take_all)
    trainer._crowded.clear()
    found = refit.train({**settings, "store": {"url": "b"}}, report=lines.append)
    trainer._crowded.clear()
    assert any(line.startswith("cuda:0 is short of memory, trying again with the rows on the CPU") for line in lines)
    assert found.model.weights_digest == expected.model.weights_digest


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_two_processes_train_the_same_bits(engine):
    settings = {**write_rows(), "compute": {"device": "cuda", "engine": engine}}
    script = (
        "import json, sys, refit; settings = json.loads(sys.argv[1])\n"
        "print(refit.train(settings, report=lambda _: None).model.weights_digest)"
    )
    digests = set()
    for url in "ab":
        given = refit.settings.json.dumps({**settings, "store": {"url": url}})
        digests.add(subprocess.run([sys.executable, "-c", script, given], capture_output=True, text=True, check=True).stdout)
    assert len(digests) == 1
