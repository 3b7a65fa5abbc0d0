"""Whole runs on a device that is not the CPU, though the CPU computes for it; see `stand_in`."""

import sys
import weakref
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from stand_in import FIRST

import refit
from refit.data.loaders import build_train_loader
from refit.errors import SettingsError, TrainingError
from refit.models import building
from refit.reports import figures
from refit.runtime.accelerators import taking_turns
from refit.settings import SettingsTree
from refit.training import loop, trainer
from refit.training.checkpoints import digest_weights, dump_state, load_state, save_state
from refit.training.loop import TrainingState, build_training_state, train_epoch

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("standin")


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    monkeypatch.setattr(figures, "draw_losses", lambda *_: b"")
    monkeypatch.setattr(figures, "draw_confusion", lambda *_: b"")


@pytest.fixture(autouse=True)
def _rows():
    generator, y = torch.Generator().manual_seed(5), torch.arange(200) % 3
    x = torch.randn(200, 4, generator=generator, dtype=torch.float64) * 2 + y[:, None]
    pl.DataFrame({**{f"x{i}": x[:, i].tolist() for i in range(4)}, "y": y.tolist()}).write_csv("rows.csv")


def train(store: str, lines: list[str] | None = None, dropout: float = 0.0, **compute: Any) -> refit.refs.TrainingResult:
    settings = {
        "preset": "plain",
        "store": {"url": store},
        "data": {"source": "rows.csv", "val": 0.2, "test": 0.2},
        "loader": {"batch_size": 9},
        "model": {"hidden_sizes": [16], "activation": "tanh", "dropout": dropout, "factory": compute.pop("factory", None)},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "training": {"num_epochs": 3, "patience": None, "timeout_seconds": compute.pop("timeout", None)},
        "compute": {"device": "standin", **compute},
    }
    if settings["model"]["factory"]:
        settings["model"] = {"factory": settings["model"]["factory"]}
    return refit.train(SettingsTree.model_validate(settings), report=[].append if lines is None else lines.append)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_has_the_weights_and_scores_that_it_has_on_the_cpu(standin, precision):
    lines: list[str] = []
    found, expected = train("a", lines, precision=precision), train("b", device="cpu", precision=precision)
    assert lines[0] == "device: standin:0 (Stand-in)"
    assert standin.num_operations > 1000
    if precision == "fp32":
        assert found.model.weights_digest == expected.model.weights_digest
    metrics = [Path(store, "models/model/v1/metrics.json").read_bytes() for store in ("a", "b")]
    assert (metrics[0] == metrics[1]) == (precision == "fp32")


def test_scores_are_those_of_the_cpu_on_which_the_model_will_be_used(standin):
    result = train("a", precision="bf16")
    settings = SettingsTree.model_validate({"store": {"url": "a"}, "compute": {"device": "standin", "precision": "bf16"}})
    before = standin.num_operations
    model = refit.load_model(result.model.path)
    rows = pl.read_csv("rows.csv").drop("y")
    logits = model.predict_logits(rows)
    assert standin.num_operations == before
    assert logits.device == CPU
    assert settings.compute.device == "standin"


def test_training_can_pause_after_every_batch_and_go_on_from_a_checkpoint_with_dropout_that_the_device_draws(store):
    settings = SettingsTree.model_validate({"model": {"hidden_sizes": [8], "dropout": 0.4}, "optimizer": {"name": "adamw"}})
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(50, 4, generator=generator), torch.arange(50) % 3

    def build() -> TrainingState:
        refit.runtime.devices.prepare_compute(settings.compute, FIRST)
        signature = refit.data.signature.Signature.of_numbers(4, 3)
        return build_training_state(settings.model, settings.optimizer, signature, seed=0, device=FIRST)

    def go_on(state: TrainingState, **given: Any) -> object:
        return train_epoch(state, build_train_loader(*rows, 8, False, FIRST), lambda _: 0.01, device=FIRST, **given)

    whole, interrupted = build(), build()
    for _ in range(2):
        go_on(whole)
    while interrupted.epoch < 2:
        go_on(interrupted, should_pause=lambda: True)
        kept = save_state(interrupted, store)
        torch.rand(3, device=FIRST)
        interrupted = build()
        load_state(kept, interrupted, store)
    assert digest_weights(interrupted.model.state_dict()) == digest_weights(whole.model.state_dict())
    assert interrupted.device.type == "standin"


def test_nothing_waits_for_the_device_within_an_epoch(standin):
    settings = SettingsTree.model_validate({"model": {"hidden_sizes": [8], "dropout": 0.4}})
    signature = refit.data.signature.Signature.of_numbers(4, 3)
    loader = build_train_loader(torch.randn(60, 4), torch.arange(60) % 3, 1, False, FIRST)
    for optimizer in ("sgd", "adam", "adamw"):
        chosen = settings.optimizer.model_copy(update={"name": optimizer})
        state = build_training_state(settings.model, chosen, signature, seed=0, device=FIRST)
        waits: list[int] = []

        def should_pause(waits: list[int] = waits) -> bool:
            waits.append(standin.num_waits)
            return False

        train_epoch(state, loader, lambda _: 0.01, device=FIRST, max_grad_norm=1.0, should_pause=should_pause)
        assert len(waits) == 59
        assert waits[0] == waits[-1], optimizer


@pytest.mark.parametrize("full_after", [1100, 2000])
def test_a_device_that_runs_out_of_memory_is_tried_again_alone_with_the_rows_on_the_cpu(standin, full_after, monkeypatch):
    expected, lines = train("b", device="cpu"), []
    standin.full_after = standin.num_operations + full_after
    collect = trainer.gc.collect

    def leave() -> int:
        standin.full_after = None
        return collect()

    crowded, open_loaders = [], trainer.open_loaders

    def note(ref, url, device=CPU, is_crowded=False):
        crowded.append(is_crowded)
        return open_loaders(ref, url, device, is_crowded)

    monkeypatch.setattr(trainer.gc, "collect", leave)
    monkeypatch.setattr(trainer, "open_loaders", note)
    found = train("a", lines)
    assert "standin:0 is short of memory, trying again with the rows on the CPU: stand-in out of memory" in lines
    assert crowded[-1]
    assert not trainer._crowded, "the next run tries anew"
    assert found.model.weights_digest == expected.model.weights_digest


@pytest.mark.parametrize("ends_by", ["deadline", "signal"])
def test_a_run_that_waits_for_a_crowded_device_can_be_stopped(standin, monkeypatch, ends_by):  # noqa: ARG001
    def deliver_signal() -> None:
        if ends_by == "signal":
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "deliver_signal", deliver_signal)
    trainer._crowded.add(FIRST)
    timeout = 0.5 if ends_by == "deadline" else None
    expected = {
        "deadline": pytest.raises(TrainingError, match="timeout_seconds have passed"),
        "signal": pytest.raises(KeyboardInterrupt),
    }
    with taking_turns(FIRST, False, lambda: None), expected[ends_by]:
        train("a", timeout=timeout)


def test_a_network_that_does_not_fit_is_told_and_leaves_what_was_trained_before(standin):
    standin.full_after = standin.num_operations + 2000
    message = (
        "compute.device: expected room for the network and a batch on standin:0, found: stand-in out of memory;"
        " lower loader.batch_size, end what else runs there, or use `cpu`; the same command goes on from here"
    )
    with pytest.raises(TrainingError, match=message):
        train("a")
    standin.full_after, lines = None, []
    trainer._crowded.clear()
    assert train("a", lines).model.weights_digest == train("b", device="cpu").model.weights_digest
    assert any(line.startswith("epochs 1 to") for line in lines)


NETWORKS = """
import torch
from torch import nn

class Scattering(nn.Linear):
    def forward(self, x):
        return super().forward(x).clone().put_(torch.zeros(1, dtype=torch.int64, device=x.device), torch.zeros(1, device=x.device))

class Homeless(nn.Linear):
    def forward(self, x):
        return super().forward(x) + torch.zeros(len(x), 1)
"""


def test_a_network_that_cannot_be_deterministic_is_refused_unless_that_is_allowed(monkeypatch, tmp_path):
    (tmp_path / "networks.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    message = (
        r"compute\.deterministic: expected a model whose operations give the same bits each time on standin:0, found: put_.*"
        "change the model, or set compute.deterministic to false"
    )
    with pytest.raises(SettingsError, match=message):
        train("a", factory="networks:Scattering")
    train("a", factory="networks:Scattering", deterministic=False)
    sys.modules.pop("networks")


def test_a_process_whose_earlier_products_were_not_deterministic_is_told_to_start_anew(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError(
            "Deterministic behavior was enabled [...], but this operation is not deterministic because it uses CuBLAS [...],"
            " you must set an environment variable: CUBLAS_WORKSPACE_CONFIG=:4096:8"
        )

    monkeypatch.setattr("refit.training.loop.train_epoch", refuse)
    message = (
        "compute.deterministic: expected a process that computes nothing on standin:0 before it trains, found one whose earlier"
        " products decided how cuBLAS computes, or another CUBLAS_WORKSPACE_CONFIG than :4096:8; set it to this before Python"
        " starts, restart the notebook, or set compute.deterministic to false"
    )
    with pytest.raises(SettingsError, match=message):
        train("a")


def test_a_network_that_makes_tensors_on_the_cpu_is_refused(monkeypatch, tmp_path):
    (tmp_path / "networks.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    message = (
        r"model\.factory: expected networks:Homeless to make its tensors on the device of its inputs, standin:0, found: .*; make"
    )
    with pytest.raises(SettingsError, match=message):
        train("a", factory="networks:Homeless")
    sys.modules.pop("networks")


def test_auto_says_why_it_takes_which_device_and_keys_know_both(standin):
    lines: list[str] = []
    train("a", lines, device="auto")
    assert lines[0].startswith("device: cpu (")
    assert lines[0].endswith("threads) or standin:0 (Stand-in)")
    (told,) = (line for line in lines[1:] if line.startswith("device: "))
    assert "as a step has 0.0 and an epoch 0 million rows times parameters" in told
    operations = standin.num_operations
    assert not train("a", device="auto").is_new
    assert standin.num_operations == operations == 0


def test_an_accelerator_that_is_gone_overnight_is_told_or_stops_the_run(standin):
    train("a", device="auto")
    standin.is_on = False
    lines: list[str] = []
    with pytest.raises(SettingsError, match="expected standin Stand-in, as in the last run of model, found only the CPU; mend it"):
        train("a", device="auto", when_missing="fail")
    assert train("a", lines, device="auto").is_new
    assert lines[0] == "compute.device: training on the CPU, from the start; the last run of model could use standin Stand-in"
    train("a", lines := [], device="auto", precision="bf16")
    assert not any("could use" in line for line in lines), "said once"


def test_after_a_run_its_network_and_rows_have_left_the_device(standin, monkeypatch):
    seen: list[tuple[int, int]] = []
    networks: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()
    build = building.build_model
    monkeypatch.setattr(loop, "build_model", lambda *given: (networks.add(it := build(*given)), it)[1])
    monkeypatch.setattr(standin, "empty_cache", lambda: seen.append((len(networks), trainer._open_loaders.cache_info().currsize)))
    train("a")
    assert seen == [(0, 0)]


def test_a_checkpoint_holds_tensors_of_the_cpu_alone(monkeypatch):
    states, save = [], save_state
    monkeypatch.setattr("refit.training.checkpoints.save_state", lambda state, store: (states.append(state), save(state, store))[1])
    train("a")
    assert states[-1].device.type == "standin"
    assert b"standin" not in dump_state(states[-1]).lower()
