"""Compiled and recorded steps on an accelerator, with the parts that need a GPU replaced."""

import gc
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from stand_in import FIRST

from refit.data.loaders import build_train_loader
from refit.data.signature import Signature
from refit.engine import captured_steps, compilation, fast_steps
from refit.engine.captured_steps import chain
from refit.errors import SettingsError
from refit.runtime.randomness import set_device
from refit.settings import ModelSettings, OptimizerSettings
from refit.training.checkpoints import digest_weights
from refit.training.loop import EpochLog, TrainingState, build_training_state, train_epoch

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _standin_at_work(standin):  # noqa: ARG001
    set_device(FIRST)


def build_state(device: torch.device = FIRST, dropout: float = 0.0, **optimizer: Any) -> TrainingState:
    given = OptimizerSettings(**{"name": "adamw", "lr": 0.01, **optimizer})
    return build_training_state(ModelSettings(hidden_sizes=[8], dropout=dropout), given, Signature.of_numbers(4, 3), 0, device)


def train(state: TrainingState, engine: str, **given: Any) -> EpochLog:
    generator = torch.Generator().manual_seed(1)
    loader = build_train_loader(torch.randn(90, 4, generator=generator), torch.arange(90) % 3, 4, False, state.device)
    log = train_epoch(state, loader, given.pop("rate", lambda _: 0.01), device=state.device, engine=engine, **given)
    assert log is not None
    return log


def digest(state: TrainingState) -> str:
    return digest_weights(state.model.state_dict())


@pytest.fixture
def compiling(monkeypatch) -> Callable[[Callable[..., Any]], list[dict[str, Any]]]:
    """Put a function in the place of PyTorch's compiler, which knows no stand-in; returns the options that it is given."""

    def replace(compile: Callable[..., Any]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        monkeypatch.setattr(torch, "compile", lambda graph, options, **_: (found.append(options), compile(graph))[1])
        return found

    return replace


def test_a_compiler_that_fails_on_a_device_fails_before_the_first_step_and_auto_goes_on_with_its_bits(monkeypatch):
    monkeypatch.setattr(fast_steps, "count_steps_before", lambda *_: 0)
    lines: list[str] = []
    plain, auto = build_state(), build_state()
    logs = train(plain, "eager"), train(auto, "auto", report=lines.append)
    assert [line.startswith("going on without compiling: compute.engine: expected a model whose step") for line in lines] == [True]
    assert logs[0].batch_losses == logs[1].batch_losses
    assert digest(plain) == digest(auto)
    with pytest.raises(SettingsError, match="expected a model whose step can be compiled whole, found Unsupported"):
        train(build_state(), "compiled")


def test_after_a_refused_compilation_no_step_waits_for_the_device(monkeypatch, standin):
    monkeypatch.setattr(fast_steps, "count_steps_before", lambda *_: 0)
    waits: list[int] = []
    train(state := build_state(), "auto", should_pause=lambda: bool(waits.append(standin.num_waits)))
    assert waits[4] == waits[-1]
    assert {state["step"].device for state in state.optimizer.state.values()} == {CPU}


@pytest.mark.parametrize("accumulate_batches", [1, 2])
def test_a_step_is_compiled_once_and_repeated_for_all_steps_of_a_call(compiling, accumulate_batches):
    calls: list[int] = []

    def compile_nothing(graph: Callable[..., Any]) -> Callable[..., Any]:
        calls.append(0)
        return graph

    options, lines = compiling(compile_nothing), []
    plain, compiled = build_state(), build_state()
    for _ in range(2):
        logs = [
            train(state, engine, accumulate_batches=accumulate_batches, report=lines.append)
            for state, engine in ((plain, "eager"), (compiled, "compiled"))
        ]
        assert logs[1].batch_losses == pytest.approx(logs[0].batch_losses, abs=1e-5)
    assert len(calls) == 1
    assert [line.startswith("compiled the training step in") for line in lines] == [True]
    assert options[0]["deterministic"]
    assert digest(plain) != digest(compiled), "Adam is computed in another way"


def test_a_compiler_that_makes_mistakes_is_found_out(compiling):
    def compile_wrongly(graph: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: [1.01 * loss for loss in graph(*arguments)]

    compiling(compile_wrongly)
    with pytest.raises(SettingsError, match="found one whose losses or weights differ when it is compiled"):
        train(build_state(), "compiled")


def test_the_time_that_compiling_takes_is_no_time_of_training(compiling, monkeypatch):
    now = [0.0]

    def read_clock() -> float:
        now[0] += 1e-3
        return now[0]

    def compile_slowly(graph: Callable[..., Any]) -> Callable[..., Any]:
        now[0] += 1000
        return graph

    compiling(compile_slowly)
    monkeypatch.setattr(time, "perf_counter", read_clock)
    assert 0 < train(build_state(), "compiled").seconds < 1


def test_a_call_of_several_steps_has_a_rate_and_a_part_of_the_rows_for_each():
    seen: list[Any] = []

    def take_step(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        seen.append([tensor.tolist() for tensor in tensors])
        return [tensors[-1].sum()]

    weights, rates = torch.ones(2), [torch.tensor(0.5), torch.tensor(0.25)]
    losses = chain(take_step, 2)([weights, *rates, torch.arange(4), torch.arange(4, 8)])
    assert seen == [[[1.0, 1.0], 0.5, [0, 1], [4, 5]], [[1.0, 1.0], 0.25, [2, 3], [6, 7]]]
    assert [loss.item() for loss in losses] == [9, 13]


@pytest.fixture
def recording(monkeypatch) -> list[str]:
    """Let the device record: the recording does what it recorded again; returns what has been recorded and replayed."""
    events: list[str] = []

    def capture(program: captured_steps.Program, tensors: list[torch.Tensor]) -> captured_steps.Program:  # noqa: ARG001
        events.append("record")
        return lambda tensors: (events.append("replay"), program(tensors))[1]

    monkeypatch.setattr(captured_steps, "capture", capture)
    monkeypatch.setattr(captured_steps, "GRAPHS", ("standin",))
    return events


@pytest.mark.parametrize("optimizer", [{"momentum": 0.9}, {}, {"weight_decay": 0.1}])
@pytest.mark.parametrize("engine", ["eager", "auto"])
def test_plain_steps_of_sgd_are_recorded_once_and_have_their_bits(recording, optimizer, engine):
    states = [build_state(device, name="sgd", **optimizer) for device in (CPU, FIRST)]
    for _ in range(3):
        logs = [train(state, engine) for state in states]
        assert logs[0].batch_losses == logs[1].batch_losses
        assert logs[0].grad_norm == logs[1].grad_norm
    assert digest(states[0]) == digest(states[1])
    assert recording.count("record") == 1
    assert recording.count("replay") > 9


def test_rows_of_recorded_steps_are_aligned_as_those_of_plain_ones(recording, monkeypatch):
    compute, places = fast_steps.FastSteps.compute_gradients, []

    def watch(steps: fast_steps.FastSteps, batches: Any) -> Any:
        places.extend(x.storage_offset() * x.element_size() for x, _ in batches)
        return compute(steps, batches)

    monkeypatch.setattr(fast_steps.FastSteps, "compute_gradients", watch)
    train(build_state(name="sgd"), "eager")
    assert recording
    assert {place % 256 for place in places} == {0}


def test_dropout_of_recorded_steps_draws_as_that_of_plain_ones(recording, monkeypatch):
    recorded, plain = (build_state(dropout=0.4, name="sgd") for _ in range(2))
    train(recorded, "eager")
    monkeypatch.setattr(captured_steps, "GRAPHS", ())
    train(plain, "eager")
    assert recording
    assert digest(recorded) == digest(plain)


@pytest.mark.parametrize("given", [{"name": "adamw"}, {"name": "sgd", "rate": lambda step: 1 / (2 + step)}])
def test_steps_whose_numbers_change_are_not_recorded(recording, given):
    rate = given.pop("rate", lambda _: 0.01)
    train(build_state(**given), "eager", rate=rate)
    assert recording == []


@pytest.mark.parametrize("fault", ["other bits", "an error", "no memory"])
def test_a_recording_that_fails_or_has_other_bits_is_not_used(recording, monkeypatch, fault):
    def capture(program: captured_steps.Program, tensors: list[torch.Tensor]) -> captured_steps.Program:  # noqa: ARG001
        if fault == "an error":
            raise RuntimeError("operation not permitted when stream is capturing")
        if fault == "no memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return lambda tensors: [(1 + 1e-6) * loss for loss in program(tensors)]

    monkeypatch.setattr(captured_steps, "capture", capture)
    states = [build_state(device, name="sgd") for device in (CPU, FIRST)]
    for state in states:
        train(state, "eager")
    assert digest(states[0]) == digest(states[1])
    assert recording == []


class FakeStream:
    """A stream, which knows its device."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device

    def wait_stream(self, other: "FakeStream") -> None:
        assert other.device == self.device


@pytest.fixture
def cuda(monkeypatch) -> list[Any]:
    """Put in the place of CUDA what records nothing and replays nothing; returns the recordings' streams and modes."""
    recorded: list[Any] = []

    @contextmanager
    def graph(graph: object, stream: FakeStream | None = None, capture_error_mode: str = "global") -> Iterator[None]:  # noqa: ARG001
        recorded.append((stream and stream.device, capture_error_mode))
        yield

    graphs = lambda: SimpleNamespace(replay=lambda: None)  # noqa: E731
    fakes = {"Stream": FakeStream, "current_stream": FakeStream, "stream": nullcontext, "CUDAGraph": graphs, "graph": graph}
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    captured_steps._open_stream.cache_clear()
    yield recorded
    captured_steps._open_stream.cache_clear()


@pytest.mark.parametrize("fails", [False, True])
def test_a_recording_is_made_on_the_device_of_its_tensors_and_leaves_them_as_they_were(cuda, fails):
    weights, x, y = torch.ones(2, device=FIRST), torch.ones(4, 2, device=FIRST), torch.arange(4, device=FIRST)

    def take_step(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        if fails and cuda:
            raise RuntimeError("operation not permitted when stream is capturing")
        tensors[0].add_(1)
        return [tensors[1].sum()]

    with pytest.raises(RuntimeError, match="not permitted") if fails else nullcontext():
        captured_steps.capture(take_step, [weights, x, y])
    assert cuda == [(FIRST, "thread_local")]
    assert weights.cpu().tolist() == [1, 1]


def test_a_recording_does_not_outlive_the_kernels_of_the_compiled_program(compiling, monkeypatch):
    class Compiled:
        def __init__(self, graph: Callable[..., Any]) -> None:
            self.graph = graph
            made.append(weakref.ref(self))

        def __call__(self, *arguments: Any) -> Any:
            return self.graph(*arguments)

    def capture(_: object, tensors: list[torch.Tensor]) -> captured_steps.Program:
        return lambda _: [torch.ones(len(tensors[-1]) // 4, device=FIRST)]

    made: list[weakref.ref[Compiled]] = []
    compiling(Compiled)
    monkeypatch.setattr(compilation, "capture", capture)
    monkeypatch.setattr(compilation, "GRAPHS", ("standin",))
    train(state := build_state(), "compiled")
    gc.collect()
    assert [it() is not None for it in made] == [True]
    del state
    gc.collect()
    assert [it() for it in made] == [None]


def test_compiled_steps_that_cannot_be_recorded_are_refused_or_auto_goes_on_without(compiling, monkeypatch):
    def capture(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    compiling(lambda graph: graph)
    monkeypatch.setattr(compilation, "capture", capture)
    monkeypatch.setattr(compilation, "GRAPHS", ("standin",))
    monkeypatch.setattr(fast_steps, "count_steps_before", lambda *_: 0)
    plain, auto = build_state(), build_state()
    train(plain, "eager")
    train(auto, "auto")
    assert digest(plain) == digest(auto)
    with pytest.raises(SettingsError, match="whole, found RuntimeError: operation not permitted when stream is capturing"):
        train(build_state(), "compiled")
