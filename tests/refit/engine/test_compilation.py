"""Compiled steps against those that run as they stand. Compiling takes seconds, so that all that can share one program does."""

import errno
import os
import random
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path
from threading import Thread

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensor
from torch.fx.experimental.proxy_tensor import make_fx

from refit.data.loaders import build_train_loader
from refit.engine import compilation, machine_code
from refit.engine.compilation import count_steps_before
from refit.engine.operations import LIGHTER, multiplies_blocks
from refit.errors import SettingsError
from refit.settings import OptimizerSettings
from refit.training.checkpoints import digest_weights, dump_state, find_partial, load_state, save_partial, save_state
from refit.training.loop import TrainingState, train_epoch
from refit.training.objective import Classification
from refit.training.objectives import Numbers
from refit.training.optimizers import build_optimizer

CPU = torch.device("cpu")
NUM_EPOCHS = 2

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """A cache that is empty at first."""
    patch = pytest.MonkeyPatch()
    path = tmp_path_factory.mktemp("compiled")
    patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(path))
    yield path / "refit"
    patch.undo()


class Network(nn.Module):
    """Dropout, batch normalization, and a parameter that no loss depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def build_state(model: type[nn.Module] = Network, **optimizer) -> TrainingState:
    torch.manual_seed(0)
    module = model()
    given = {"name": "adamw", "lr": 0.01, "weight_decay": 0.1, **optimizer}
    return TrainingState(module, build_optimizer(OptimizerSettings(**given), module.parameters()), Classification(()))


def make_loader(num_rows: int = 70, batch_size: int = 8):
    """Eight batches of 8 rows and one of 6: in groups of two, a call of four steps, and one with the short batch alone."""
    generator = torch.Generator().manual_seed(11)
    y = torch.randint(3, (num_rows,), generator=generator)
    return build_train_loader(torch.randn(num_rows, 5, generator=generator) + y[:, None], y, batch_size, False)


def train(state: TrainingState, engine: str = "compiled", **options):
    """An epoch with all that an epoch can have."""
    given = {"device": CPU, "accumulate_batches": 2, "max_grad_norm": 0.5, **options}
    return train_epoch(state, make_loader(), lambda step: 0.01 / (1 + step), engine=engine, **given)


def assert_close(found: TrainingState, expected: TrainingState) -> None:
    for name, value in expected.model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], value, rtol=0, atol=1e-5)
    states = [state.optimizer.state_dict()["state"] for state in (found, expected)]
    assert states[0].keys() == states[1].keys()
    for number, values in states[1].items():
        for name, value in values.items():
            torch.testing.assert_close(states[0][number][name], value, rtol=1e-3, atol=1e-6)


def test_compiled_epochs_are_eager_ones_up_to_rounding():
    """With dropout, normalization, decay, clipping, groups, a schedule, a short last batch and a parameter without gradient."""
    states, lines = {engine: build_state() for engine in ("eager", "compiled")}, []
    for _ in range(NUM_EPOCHS):
        logs = [train(state, engine, report=lines.append) for engine, state in states.items()]
        assert logs[1].batch_losses == pytest.approx(logs[0].batch_losses, abs=1e-5)
        assert logs[1].grad_norm == pytest.approx(logs[0].grad_norm, rel=1e-4)
        assert logs[1].lr == logs[0].lr
    assert_close(states["compiled"], states["eager"])
    assert states["compiled"].step == states["eager"].step
    assert torch.equal(states["compiled"].random_state["torch"], states["eager"].random_state["torch"])
    assert torch.equal(states["compiled"].model.unused, torch.ones(3))
    assert digest_weights(states["compiled"].model.state_dict()) != digest_weights(states["eager"].model.state_dict())
    assert len(lines) == 1
    assert lines[0].startswith("compiled the training step in ")


def test_numbers_are_learned_by_compiled_steps_as_by_plain_ones():
    """One output, whose layer is a matrix of one column, and targets that are no whole numbers."""
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(70, 5, generator=generator)
    y = x.sum(dim=1) / 2 + 0.3
    states = {}
    for engine in ("eager", "compiled"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 1))
        optimizer = build_optimizer(OptimizerSettings(name="adamw"), model.parameters())
        states[engine] = TrainingState(model, optimizer, Numbers(nn.functional.mse_loss))
    for _ in range(NUM_EPOCHS):
        loader = build_train_loader(x, y, 8, False)
        logs = [train_epoch(state, loader, lambda _: 0.01, engine=engine, device=CPU) for engine, state in states.items()]
        assert logs[1].batch_losses == pytest.approx(logs[0].batch_losses, abs=1e-5)
    assert_close(states["compiled"], states["eager"])


def train_compiled(store, is_paused: bool) -> TrainingState:
    state, num_pauses = build_state(), 0
    while state.epoch < NUM_EPOCHS:
        if train(state, should_pause=lambda: is_paused) is None:
            num_pauses += 1
            save_partial("key", dump_state(state), store)
            torch.manual_seed(1234)
            state = build_state()
            load_state(find_partial("key", store), state, store)
    assert num_pauses == (5 if is_paused else 0), "four in the first epoch, whose first step makes the state, and one in the second"
    return state


def test_pausing_wherever_it_can_be_done_gives_the_bits_of_an_undisturbed_run(store):
    undisturbed = save_state(train_compiled(store, is_paused=False), store)
    assert save_state(train_compiled(store, is_paused=True), store) == undisturbed


def test_another_process_gives_the_same_bits_without_compiling(store, folder):
    expected = digest_weights(train_compiled(store, is_paused=False).model.state_dict())
    programs = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_compilation as here\n"
        "from refit.training.checkpoints import digest_weights; from refit.store.store import Store\n"
        "print(digest_weights(here.train_compiled(Store('store'), False).model.state_dict()))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent)], env=os.environ, capture_output=True, text=True, check=True
    )
    assert finished.stdout.strip() == expected
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == programs


def test_an_eager_run_goes_on_from_a_compiled_checkpoint(store):
    compiled = train_compiled(store, is_paused=False)
    state = build_state()
    load_state(save_state(compiled, store), state, store)
    train(state, "eager")
    train(compiled, "eager")
    assert save_state(state, store) == save_state(compiled, store)


@pytest.mark.parametrize(("num_inputs", "num_rows", "first"), [(4, 2, 199_898), (100, 256, 86_065), (784, 1024, 4_745)])
def test_auto_compiles_larger_steps_earlier(num_inputs, num_rows, first):
    num_before = count_steps_before("auto", [*nn.Linear(num_inputs, 64).parameters()], num_rows)
    assert [step >= num_before for step in (first - 1, first)] == [False, True]


def test_auto_compiles_the_first_whole_call_from_its_step_on_whether_or_not_the_epoch_was_paused(monkeypatch, store):
    monkeypatch.setattr(compilation, "LONGEST_WAIT", 2)
    state, paused, eager = build_state(), build_state(), build_state()
    steps: dict[str, list[int]] = {"at once": [], "paused": []}
    for _ in range(2):
        train(state, "auto", accumulate_batches=1, report=lambda _: steps["at once"].append(state.step))
        train(eager, "eager", accumulate_batches=1)
    options = {"accumulate_batches": 1, "should_pause": lambda: True, "report": lambda _: steps["paused"].append(paused.step)}
    while paused.epoch < 2:
        train(paused, "auto", **options)
    assert steps == {"at once": [4], "paused": [4]}
    assert save_state(state, store) == save_state(paused, store) != save_state(eager, store)
    assert_close(state, eager)


class Deciding(Network):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x) if x.sum() > 0 else self.layers(-x)


class Counting(Network):
    num_calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.num_calls += 1
        return self.layers(x) / self.num_calls


class Drawing(Network):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x) * random.random()


class Remembering(Network):
    def __init__(self) -> None:
        super().__init__()
        self.largest = torch.zeros(2, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.largest[0] += x.detach().amax(0)
        return self.layers(x / self.largest[0])


@pytest.mark.parametrize("model", [Deciding, Counting, Drawing, Remembering])
def test_a_model_that_would_be_another_when_compiled_is_refused_and_left_as_it_is_by_auto(model, monkeypatch):
    message = r"compute\.engine: expected a model whose step can be compiled whole, found .+; use `eager`"
    with pytest.raises(SettingsError, match=message):
        train(build_state(model), accumulate_batches=1)

    monkeypatch.setattr(compilation, "LONGEST_WAIT", 1)
    digests, lines = [], []
    for engine in ("auto", "eager"):
        random.seed(0)
        state = build_state(model)
        for _ in range(2):
            train(state, engine, accumulate_batches=1, report=lines.append)
        digests.append(digest_weights(state.model.state_dict()))
    assert digests[0] == digests[1]
    assert [line.startswith("going on without compiling: compute.engine") for line in lines] == [True]


def test_draws_of_another_thread_are_not_taken_for_the_models():
    threads = [Thread(target=random.random)]

    class Accompanied(Network):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if threads and isinstance(x, FakeTensor):  # the first trace
                thread = threads.pop()
                thread.start()
                thread.join()
            return self.layers(x)

    lines = []
    train(build_state(Accompanied), accumulate_batches=1, report=lines.append)
    assert [line.startswith("compiled the training step") for line in lines] == [True]
    assert threads == []


def test_a_full_disk_is_no_reason_to_go_on_without_compiling(monkeypatch):
    def fill_disk(*_, **__) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(compilation, "LONGEST_WAIT", 1)
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fill_disk)
    with pytest.raises(OSError, match="No space left"):
        train(build_state(lambda: nn.Linear(5, 3)), "auto", accumulate_batches=1)


class Masked(nn.Module):
    """A constant that is neither parameter nor buffer."""

    def __init__(self, mask: float) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)
        self.mask = torch.tensor([1.0, 1.0, mask])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * self.mask


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.memory, self.layer = nn.LSTM(1, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.memory(x[:, :2, None])[0][:, -1])


@pytest.mark.parametrize("model", [lambda: Masked(0.5), lambda: Masked(2.0), Recurrent], ids=["0.5", "2.0", "recurrent"])
def test_sgd_decays_as_pytorch_does_and_a_constant_of_the_model_is_part_of_its_program(model, monkeypatch):
    """PyTorch 2.13's own patterns would compile the gradient's sum with the decay wrongly. One step a call, as for large ones."""
    monkeypatch.setattr(compilation, "SMALL_STEP", 0)
    monkeypatch.setattr(compilation, "MEDIUM_STEP", 0)
    states = {engine: build_state(model, name="sgd", lr=0.1, weight_decay=0.3) for engine in ("eager", "compiled")}
    for engine, state in states.items():
        train(state, engine, accumulate_batches=1, max_grad_norm=None)
    assert_close(states["compiled"], states["eager"])


class Broad(nn.Sequential):
    """Its products are larger than a block in each direction, and no multiple of one."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(5, 300), nn.ReLU(), nn.Linear(300, 140), nn.ReLU(), nn.Linear(140, 3))


def test_products_of_many_blocks_on_two_threads_are_right(folder):
    torch.set_num_threads(2)
    before, loader = set(folder.glob("*")), make_loader(700, 300)
    states = {engine: build_state(Broad, name="sgd", lr=0.1) for engine in ("eager", "compiled")}
    for engine, state in states.items():
        train_epoch(state, loader, lambda _: 0.1, device=CPU, engine=engine)
    assert_close(states["compiled"], states["eager"])
    assert digest_weights(states["compiled"].model.state_dict()) != digest_weights(states["eager"].model.state_dict())

    (path,) = set(folder.glob("*")) - before
    with zipfile.ZipFile(path) as package:
        code = b"".join(package.read(name) for name in package.namelist() if name.endswith(".so"))
    assert (b"brgemm" in code) == multiplies_blocks()


def test_products_are_as_exact_as_single_precision_allows():
    torch.manual_seed(0)
    x, weight = torch.randn(512, 512), torch.randn(512, 512)
    graph = make_fx(lambda x, weight: (x.mm(weight.t()),), LIGHTER)(x, weight)
    (product,) = machine_code.load_program(graph, (x, weight), CPU)([x, weight])
    exact = x.double() @ weight.double().t()
    assert (product - exact).norm() < 1e-6 * exact.norm()


def test_programs_keep_their_own_memory_and_leave_what_they_returned():
    torch.manual_seed(0)
    x, weight = torch.randn(6, 6), torch.randn(6, 6)
    view = machine_code.load_program(make_fx(lambda x, weight: (x.mm(weight)[:3].t(),), LIGHTER)(x, weight), (x, weight), CPU)
    product = machine_code.load_program(make_fx(lambda x, weight: (x.mm(weight),), LIGHTER)(x[:4], weight), (x[:4], weight), CPU)
    factors = [torch.randn(6, 6) for _ in range(4)]
    results = [(*view([x, factor]), *product([x[:4], factor])) for factor in factors]
    for factor, (columns, rows) in zip(factors, results, strict=True):
        assert torch.allclose(columns, x.mm(factor)[:3].t(), atol=1e-5)
        assert torch.allclose(rows, x[:4].mm(factor), atol=1e-5)
    del results, columns, rows  # from here on, memory is free when a program runs again
    for factor in factors:
        assert torch.allclose(view([x, factor])[0], x.mm(factor)[:3].t(), atol=1e-5)
        assert torch.allclose(product([x[:4], factor])[0], x[:4].mm(factor), atol=1e-5)


class Normalized(nn.Module):
    """Of a shape whose dropout Inductor (PyTorch 2.13) would draw after it was used, as draws are in place there."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def test_dropout_is_drawn_before_it_is_used_and_a_program_that_computes_something_else_is_not(folder, monkeypatch):
    monkeypatch.setattr(compilation, "LONGEST_WAIT", 1)
    states = {engine: build_state(Normalized, name="sgd", lr=0.1) for engine in ("eager", "compiled")}
    before = set(folder.glob("*"))
    for engine, state in states.items():
        train(state, engine, accumulate_batches=1, max_grad_norm=None)
    assert_close(states["compiled"], states["eager"])

    class Sharper(Normalized):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 3 * self.layers(x)

    (path,) = set(folder.glob("*")) - before
    monkeypatch.setattr(machine_code, "_digest", lambda *_: path.stem)
    with pytest.raises(SettingsError, match="found one whose losses or weights differ when it is compiled"):
        train(build_state(Sharper, name="sgd", lr=0.1), accumulate_batches=1, max_grad_norm=None)
    options = runpy.run_path(machine_code.__file__)["OPTIONS"]
    assert options == machine_code.OPTIONS  # compiling has changed none, so that the next program is named by the same
    lines = []
    train(build_state(Sharper, name="sgd", lr=0.1), "auto", accumulate_batches=1, max_grad_norm=None, report=lines.append)
    assert [line.startswith("going on without compiling: compute.engine") for line in lines] == [True]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_gpu_compiled_epochs_are_eager_ones_up_to_rounding():
    gpu, losses = torch.device("cuda:0"), {}
    for engine in ("eager", "compiled"):
        state = build_state()
        state.model.layers[3].p = 0.0  # there, dropout draws in another way
        state.model.to(gpu)
        logs = [train(state, engine, device=gpu) for _ in range(NUM_EPOCHS)]
        losses[engine] = [loss for log in logs for loss in log.batch_losses]
    assert losses["compiled"] == pytest.approx(losses["eager"], abs=1e-4)
