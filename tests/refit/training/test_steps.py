import re

import pytest
import torch

from refit.data.loaders import build_train_loader
from refit.data.signature import Signature
from refit.errors import SettingsError
from refit.refs import Ref
from refit.settings import ModelSettings, OptimizerSettings
from refit.training import steps
from refit.training.checkpoints import load_state, save_state
from refit.training.loop import TrainingState, build_training_state, train_epoch
from refit.training.steps import Steps, find_engine

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _found_anew():
    steps._find_fast.cache_clear()
    yield
    steps._find_fast.cache_clear()


def build_state() -> TrainingState:
    model = ModelSettings(hidden_sizes=[8], dropout=0.3)
    optimizer = OptimizerSettings(name="adamw", weight_decay=0.1)
    return build_training_state(model, optimizer, Signature.of_numbers(4, 3), seed=0, device=CPU)


def train(state: TrainingState, engine: str = "eager") -> TrainingState:
    generator = torch.Generator().manual_seed(1)
    loader = build_train_loader(torch.randn(50, 4, generator=generator), torch.arange(50) % 3, 8, False)
    train_epoch(state, loader, lambda _: 0.01, device=CPU, engine=engine)
    return state


def test_without_the_package_of_faster_engines_the_reference_takes_all_steps(monkeypatch):
    monkeypatch.setattr(steps, "ENGINE", "refit.nothing")
    assert [find_engine(name) for name in ("eager", "auto")] == [Steps, Steps]
    message = r"compute\.engine: expected an engine that compiles steps, found no package refit\.nothing; use `eager` or `auto`"
    with pytest.raises(SettingsError, match=message):
        find_engine("compiled")


@pytest.mark.parametrize("version", ["2.12.1", "2.14.0+cu130", "3.0.0a0+git1234567"])
def test_another_pytorch_goes_on_by_the_reference_after_one_warning_with_the_bits_of_the_engine_that_began(
    version, monkeypatch, store
):
    pytest.importorskip(steps.ENGINE)
    expected = save_state(train(train(build_state())), store)
    begun = save_state(train(build_state()), store)
    assert find_engine("eager") is not Steps

    steps._find_fast.cache_clear()
    monkeypatch.setattr(torch, "__version__", version)

    def go_on(engine: str) -> Ref:
        load_state(begun, state := build_state(), store)
        return save_state(train(state, engine), store)

    message = rf"training with the reference engine, which is slower: found PyTorch {re.escape(version)}, while .* was tested with "
    with pytest.warns(UserWarning, match=message) as told:
        found = [go_on(engine) for engine in ("eager", "auto")]
    assert len(told) == 1
    assert find_engine("auto") is Steps
    assert found == [expected, expected]
    with pytest.raises(SettingsError, match=r"compute\.engine: expected an engine that compiles steps, found PyTorch"):
        find_engine("compiled")
