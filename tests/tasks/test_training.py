import asyncio
import copy
import itertools
import random
import secrets
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import prefect.utilities.math
import pytest
import torch
import websockets.asyncio.connection
import websockets.client
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.runtime import flow_run

from refit.data.signature import Signature
from refit.errors import SettingsError, StoreError, TrainingError
from refit.refs import EpochResult, Ref
from refit.runtime.interruption import holding_signals
from refit.settings import SettingsTree
from refit.store.store import Store
from refit.tables import dataset
from refit.tables.table_examples import load_manifest
from refit.tasks.dataset import build_dataset
from refit.tasks.evaluation import evaluate
from refit.tasks.loaders import build_loaders
from refit.tasks.saving import save_version
from refit.tasks.training import start_training, train_epoch
from refit.training import checkpoints, loop, trainer

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def settings(tmp_path) -> SettingsTree:
    """A model with dropout and momentum on a table with three kinds of splits."""
    generator = torch.Generator().manual_seed(5)
    y = torch.arange(60) % 3
    x = torch.randn(60, 4, generator=generator) + y[:, None]
    pl.DataFrame({**{f"x{i}": x[:, i].tolist() for i in range(4)}, "y": y.tolist()}).write_csv(tmp_path / "table.csv")
    return SettingsTree.model_validate(
        {
            "data": {"source": str(tmp_path / "table.csv"), "val": 0.2, "test": 0.2},
            "loader": {"batch_size": 8, "drop_last": False},
            "model": {"hidden_sizes": [8], "dropout": 0.3},
            "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
            "store": {"url": str(tmp_path / "store")},
        }
    )


@pytest.fixture(autouse=True)
def _nothing_is_live():
    forget()
    yield
    forget()


def forget() -> None:
    """As another process would find it."""
    trainer._live.clear()


def new_key() -> str:
    """A recipe that was never run, so that the task runs."""
    return secrets.token_hex(32)


def changed(settings: SettingsTree, section: str, **values) -> SettingsTree:
    tree = settings.model_dump()
    tree[section].update(values)
    return SettingsTree.model_validate(tree)


def with_own_forward(settings: SettingsTree, path: Path, body: str) -> SettingsTree:
    """A linear model of the user's in this file, whose forward pass has this body."""
    path.write_text(f"from torch import nn\n\n\nclass Network(nn.Linear):\n    def forward(self, x):\n{body}")
    return changed(settings, "model", factory=f"{path.stem}:Network")


def prepare(settings: SettingsTree) -> SimpleNamespace:
    snapshot = build_dataset(new_key(), settings, [None, None])
    loaders = build_loaders(new_key(), snapshot, settings)
    return SimpleNamespace(snapshot=snapshot, loaders=loaders, checkpoint=start_training(new_key(), snapshot, settings))


@flow
def train_first_epoch(settings: SettingsTree, key: str, deadline: float | None = None) -> EpochResult:
    made = prepare(settings)
    return train_epoch(1, key, made.checkpoint, made.loaders, settings, deadline)


def train_plainly(settings: SettingsTree, num_epochs: int) -> list[loop.EpochLog]:
    """The oracle: `refit` without Prefect, in one go."""
    from refit.data.loaders import build_train_loader
    from refit.training.optimizers import build_learning_rate

    store = Store(settings.store.url)
    manifest = load_manifest(dataset.build_dataset(settings.data, settings.seed, store), store)
    loader = build_train_loader(*manifest.load_split("train", store), settings.loader.batch_size, settings.loader.drop_last)
    cpu = torch.device("cpu")
    state = loop.build_training_state(settings.model, settings.optimizer, Signature.of_numbers(4, 3), settings.seed, cpu)
    rate = build_learning_rate(settings.optimizer, len(loader) * settings.training.num_epochs)
    logs = [loop.train_epoch(state, loader, rate, device=cpu) for _ in range(num_epochs)]
    return [log.batch_losses for log in logs], checkpoints.digest_weights(state.model.state_dict())


def read(result: EpochResult, settings: SettingsTree) -> tuple[list[float], str]:
    """An epoch's batch losses and the digest of its weights."""
    store = Store(settings.store.url)
    log = checkpoints.load_report(result.log, loop.EpochLog, store)
    content = torch.load(
        Path(store.root) / "objects" / result.checkpoint.digest[:2] / result.checkpoint.digest[2:], weights_only=True
    )
    return log.batch_losses, checkpoints.digest_weights(content["model"])


def test_epochs_as_tasks_give_the_bits_of_the_plain_loop(settings):
    @flow
    def run():
        made = prepare(settings)
        results, checkpoint = [], made.checkpoint
        for epoch in (1, 2, 3):
            results.append(train_epoch(epoch, new_key(), checkpoint, made.loaders, settings))
            checkpoint = results[-1].checkpoint
        return results

    found = [read(result, settings) for result in run()]
    losses, digest = train_plainly(settings, 3)
    assert [batch_losses for batch_losses, _ in found] == losses
    assert found[-1][1] == digest


@pytest.mark.parametrize("is_resumed", [False, True], ids=["started", "resumed"])
def test_no_other_thread_draws_from_the_generator_that_the_model_may_draw_from(settings, monkeypatch, is_resumed):
    """A connection draws for every ping, and what waits before another try draws how long."""
    modules = prefect.utilities.math, websockets.client, websockets.asyncio.connection

    async def ping() -> None:
        async with (
            websockets.serve(lambda connection: connection.wait_closed(), "127.0.0.1", 0) as server,
            websockets.connect(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}") as connection,
        ):
            await (await connection.ping())

    @flow
    def run():
        made = prepare(settings)
        if is_resumed:
            forget()
        for module in modules:
            monkeypatch.setattr(module, "random", random)
        if is_resumed:
            train_epoch(1, new_key(), made.checkpoint, made.loaders, settings)
        else:
            start_training(new_key(), made.snapshot, settings)

    run()
    before = random.getstate()
    asyncio.run(ping())
    next(websockets.client.backoff())
    prefect.utilities.math.clamped_poisson_interval(1)
    assert random.getstate() == before


def test_a_model_that_checkpoints_cannot_hold_is_warned_of(settings, monkeypatch, tmp_path, caplog):
    monkeypatch.syspath_prepend(tmp_path)
    body = "        self.num_calls = getattr(self, 'num_calls', 0) + 1\n        return super().forward(x)\n"
    settings = with_own_forward(settings, tmp_path / "counting.py", body)

    @flow
    def run():
        prepare(settings)

    run()
    assert "model.factory: counting:Network changes num_calls in training, which no checkpoint" in caplog.text


def test_a_model_that_could_not_be_served_is_refused_before_it_is_trained(settings, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    settings = with_own_forward(settings, tmp_path / "squeezing.py", "        return super().forward(x).squeeze()\n")
    with pytest.raises(SettingsError, match=r"float32 logits of \(1, 3\) for 1 row in evaluation mode, found float32 of \(3,\)"):
        train_first_epoch(settings, new_key())


def test_an_epoch_trained_twice_from_one_checkpoint_gives_the_same_bits(settings):
    """The live state, once trained, is not taken for the checkpoint that it came from."""

    @flow
    def run():
        made = prepare(settings)
        return [train_epoch(1, new_key(), made.checkpoint, made.loaders, settings) for _ in range(3)]

    first, *others = run()
    assert [read(other, settings) for other in others] == [read(first, settings)] * 2
    assert [other.checkpoint for other in others] == [first.checkpoint] * 2


@pytest.mark.parametrize("optimizer", [{"name": "sgd", "momentum": 0.9}, {"name": "adamw", "momentum": 0.0, "lr": 0.01}])
@pytest.mark.parametrize("regularization", ["constant", "flat_cosine"])
def test_loading_every_checkpoint_gives_the_bits_of_the_live_state(settings, optimizer, regularization):
    settings = changed(settings, "optimizer", schedule="cosine", warmup_steps=2, weight_decay=0.1, **optimizer)
    settings = changed(settings, "training", num_epochs=4, regularization=regularization)

    @flow
    def run(is_forgetful: bool):
        made = prepare(settings)
        results, checkpoint = [], made.checkpoint
        for epoch in (1, 2, 3):
            if is_forgetful:
                forget()
                torch.manual_seed(1234)
            results.append(train_epoch(epoch, new_key(), checkpoint, made.loaders, settings))
            checkpoint = results[-1].checkpoint
        return results

    live = [read(result, settings) for result in run(False)]
    assert [read(result, settings) for result in run(True)] == live


def test_the_common_path_loads_no_checkpoint(settings, monkeypatch):
    loaded = []
    load_state = checkpoints.load_state
    monkeypatch.setattr(checkpoints, "load_state", lambda ref, *rest: loaded.append(ref) or load_state(ref, *rest))

    @flow
    def run():
        made = prepare(settings)
        first = train_epoch(1, new_key(), made.checkpoint, made.loaders, settings)
        train_epoch(2, new_key(), first.checkpoint, made.loaders, settings)
        assert loaded == []
        train_epoch(2, new_key(), first.checkpoint, made.loaders, settings)
        assert loaded == [first.checkpoint]

    run()


def test_a_retry_after_half_an_epoch_gives_the_bits_of_an_epoch_that_never_failed(settings, monkeypatch):
    @flow
    def run(task):
        made = prepare(settings)
        first = task(1, new_key(), made.checkpoint, made.loaders, settings)
        return [first, task(2, new_key(), first.checkpoint, made.loaders, settings)]

    undisturbed = [read(result, settings) for result in run(train_epoch)]
    forget()
    tears = tear_loader_once(monkeypatch, num_batches=2, epochs=(1, 2))
    disturbed = [read(result, settings) for result in run(train_epoch.with_options(retries=1))]
    assert tears == [1, 2]
    assert disturbed == undisturbed


def tear_loader_once(monkeypatch, num_batches: int, epochs: tuple[int, ...]) -> list[int]:
    """Make the first try of each of these epochs lose its loader after some batches."""
    tears: list[int] = []
    whole = trainer.open_loaders
    tries = iter([True, False] * len(epochs))

    def open_loaders(ref, url, device=None, *more):
        if device is None:  # of the task that builds loaders
            return whole(ref, url)
        train_loader, val_loader = whole(ref, url, device, *more)
        return (tear(train_loader) if next(tries, False) else train_loader), val_loader

    def tear(loader):
        torn, batches = copy.copy(loader), iter(range(num_batches))

        def gather(rows):
            if next(batches, None) is None:
                tears.append(len(tears) + 1)
                raise OSError("the loader is torn")
            return loader.gather(rows)

        torn.gather = gather
        return torn

    monkeypatch.setattr(trainer, "open_loaders", open_loaders)
    return tears


def test_a_failed_epoch_leaves_nothing_half_trained_behind(settings, monkeypatch):
    @flow
    def run():
        made = prepare(settings)
        with pytest.raises(OSError, match="torn"):
            train_epoch.with_options(retries=0)(1, new_key(), made.checkpoint, made.loaders, settings)
        return train_epoch(1, new_key(), made.checkpoint, made.loaders, settings)

    tear_loader_once(monkeypatch, num_batches=3, epochs=(1,))
    losses, digest = train_plainly(settings, 1)
    assert read(run(), settings) == (losses[0], digest)


@pytest.mark.parametrize(("field", "value"), [("activation", "tanh"), ("dropout", 0.6)])
def test_two_models_with_the_same_weights_do_not_share_the_live_state(settings, field, value):
    other = changed(settings, "model", **{field: value})

    @flow
    def run():
        made = prepare(settings)
        others = start_training(new_key(), made.snapshot, other)
        assert others == made.checkpoint, "the weights alone do not tell the models apart"
        mine = train_epoch(1, new_key(), made.checkpoint, made.loaders, settings)
        start_training(new_key(), made.snapshot, settings)
        return mine, train_epoch(1, new_key(), others, made.loaders, other)

    mine, others = run()
    for result, its_settings in ((mine, settings), (others, other)):
        losses, digest = train_plainly(its_settings, 1)
        assert read(result, its_settings) == (losses[0], digest)
    assert mine.checkpoint != others.checkpoint


def test_training_starts_from_the_same_checkpoint_every_time(settings):
    @flow
    def run():
        made = prepare(settings)
        torch.rand(5)
        return made.checkpoint, start_training(new_key(), made.snapshot, settings)

    first, second = run()
    assert first == second


def test_an_epochs_result_carries_the_figures_of_its_log(settings):
    result = train_first_epoch(settings, new_key())
    log = checkpoints.load_report(result.log, loop.EpochLog, Store(settings.store.url))
    assert (result.epoch, result.train_loss, result.val_loss, result.val_score) == (
        log.epoch,
        log.train_loss,
        log.val_loss,
        log.val_score,
    )
    assert result.val_loss is not None
    assert EpochResult.model_validate_json(result.model_dump_json()) == result


def test_a_loss_that_is_not_finite_fails_the_task_with_its_message(settings):
    diverging = changed(settings, "optimizer", lr=1e30)

    @flow
    def run():
        made = prepare(diverging)
        train_epoch(1, new_key(), made.checkpoint, made.loaders, diverging)

    with pytest.raises(TrainingError, match=r"epoch 1, batch \d: expected a finite loss"):
        run()


def test_task_runs_are_named_for_what_they_do(settings):
    seen = []

    @flow
    def run():
        seen.append(flow_run.id)
        made = prepare(settings)
        result = train_epoch(1, new_key(), made.checkpoint, made.loaders, settings)
        metrics = {split: evaluate(new_key(), split, result.checkpoint, made.snapshot, settings) for split in made.snapshot.splits}
        train_epoch(1, new_key(), made.checkpoint, build_loaders(new_key(), made.snapshot, settings, on_all_rows=True), settings)
        save_version(new_key(), result, [result], metrics, made.snapshot, settings)

    run()
    expected = [
        "build data set",
        "build loaders",
        "start training",
        "train epoch 1",
        "evaluate train",
        "evaluate val",
        "evaluate test",
        "build loaders",
        "train epoch 1 on all rows",
        "save version",
    ]
    deadline = time.monotonic() + 30
    names: list[str] = []
    with get_client(sync_client=True) as client:
        while names != expected and time.monotonic() < deadline:  # task runs, and later their names, reach the server as events
            runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=seen)))
            names = [task_run.name for task_run in sorted(runs, key=lambda each: each.expected_start_time)]
            time.sleep(0.2)
    assert names == expected


def read_partial(key: str, settings: SettingsTree) -> tuple[Ref, int] | None:
    """The checkpoint inside an epoch, and the number of its batches."""
    store = Store(settings.store.url)
    ref = checkpoints.find_partial(key, store)
    if ref is None:
        return None
    content = torch.load(Path(store.root) / store.object_path(ref.digest), weights_only=True)
    return ref, len(content["partial"]["batch_losses"])


def call_at_step(monkeypatch, number: int, act) -> None:
    """Call `act` while the step of this number, counted from 1, is at work; only once."""
    build, seen = trainer.optimizers.build_learning_rate, []

    def build_learning_rate(*arguments):
        rate = build(*arguments)

        def learning_rate(step: int) -> float:
            if step + 1 == number and not seen:
                seen.append(step)
                act()
            return rate(step)

        return learning_rate

    monkeypatch.setattr(trainer.optimizers, "build_learning_rate", build_learning_rate)


def test_checkpoints_inside_an_epoch_change_no_bit_and_are_gone_after_it(settings, monkeypatch):
    """With a checkpoint after every step."""
    settings, key, saved = changed(settings, "checkpoint", every_seconds=1e-9), new_key(), []
    save_partial = checkpoints.save_partial
    monkeypatch.setattr(checkpoints, "save_partial", lambda *given: saved.append(given[0]) or save_partial(*given))

    losses, digest = train_plainly(settings, 1)
    assert read(train_first_epoch(settings, key), settings) == (losses[0], digest)
    assert saved == [key] * 4, "after every step but the last of five"
    assert read_partial(key, settings) is None


def test_training_goes_on_while_a_checkpoint_inside_an_epoch_is_written(settings, monkeypatch):
    settings, key, has_gone_on, waits = changed(settings, "checkpoint", every_seconds=1e-9), new_key(), threading.Event(), []
    save_partial = checkpoints.save_partial

    def save_late(*given):
        waits.append(has_gone_on.wait(60))
        save_partial(*given)

    monkeypatch.setattr(checkpoints, "save_partial", save_late)
    call_at_step(monkeypatch, 2, has_gone_on.set)

    losses, digest = train_plainly(settings, 1)
    assert read(train_first_epoch(settings, key), settings) == (losses[0], digest)
    assert waits == [True] * 4
    assert read_partial(key, settings) is None


@pytest.mark.parametrize("number", [1, 4])
def test_a_checkpoint_inside_an_epoch_that_cannot_be_written_is_an_error(settings, monkeypatch, number):
    settings, key, saves = changed(settings, "checkpoint", every_seconds=1e-9), new_key(), itertools.count(1)

    def fail(*_):
        if next(saves) == number:
            raise StoreError("full")

    monkeypatch.setattr(checkpoints, "save_partial", fail)

    with pytest.raises(StoreError, match="full"):
        train_first_epoch(settings, key)


@pytest.fixture
def leaving():
    """SIGTERM leaves the process, as under `refit.commands.local_run`."""

    def leave(signum: int, _: object) -> None:
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, leave)
    yield
    signal.signal(signal.SIGTERM, before)


def train_with_a_signal_in_step_three(settings: SettingsTree, monkeypatch, caplog) -> int:
    """Train an epoch that gets SIGTERM, then again; return how many batches the first had kept."""
    key = new_key()

    @flow
    def run():
        made = prepare(settings)
        with holding_signals():
            return train_epoch(1, key, made.checkpoint, made.loaders, settings)

    call_at_step(monkeypatch, 3, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit):
        run()
    _, num_batches = read_partial(key, settings)
    forget()
    losses, digest = train_plainly(settings, 1)
    assert read(run(), settings) == (losses[0], digest)
    assert f"epoch 1: going on after batch {num_batches}" in caplog.text
    return num_batches


@pytest.mark.usefixtures("leaving")
def test_a_signal_waits_until_the_batch_at_work_is_done_and_kept(settings, monkeypatch, caplog):
    assert train_with_a_signal_in_step_three(settings, monkeypatch, caplog) == 3


@pytest.mark.usefixtures("leaving")
def test_a_signal_waits_in_an_epoch_that_had_a_checkpoint_before_too(settings, monkeypatch, caplog):
    settings = changed(settings, "checkpoint", every_seconds=1e-9)
    assert train_with_a_signal_in_step_three(settings, monkeypatch, caplog) == 3


@pytest.mark.usefixtures("leaving")
def test_a_signal_in_the_last_step_of_an_epoch_ends_its_group_there(settings, monkeypatch):
    first, second = new_key(), new_key()

    @flow
    def run():
        made = prepare(settings)
        with holding_signals():
            return train_epoch(2, second, made.checkpoint, made.loaders, settings, None, [first])

    begun, train = [], loop.train_epoch

    def note(state, *given, **named):
        begun.append(state.epoch + 1)
        return train(state, *given, **named)

    monkeypatch.setattr(loop, "train_epoch", note)
    call_at_step(monkeypatch, 5, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit):
        run()
    assert read_partial(second, settings) is None
    forget()
    losses, digest = train_plainly(settings, 2)
    begun.clear()
    assert read(run(), settings) == (losses[1], digest)
    assert begun == [2]


def test_a_retry_goes_on_from_the_checkpoint_inside_the_epoch(settings, monkeypatch, caplog):
    settings, failures = changed(settings, "checkpoint", every_seconds=1e-9), [OSError("torn")]

    def fail() -> None:
        raise failures.pop()

    @flow
    def run():
        made = prepare(settings)
        return train_epoch.with_options(retry_delay_seconds=0)(1, new_key(), made.checkpoint, made.loaders, settings)

    losses, digest = train_plainly(settings, 1)
    call_at_step(monkeypatch, 4, fail)
    assert read(run(), settings) == (losses[0], digest)
    assert failures == []
    assert "epoch 1: going on after batch 3" in caplog.text


def test_a_damaged_checkpoint_inside_the_epoch_is_left_aside_for_the_one_before_the_epoch(settings, monkeypatch, caplog):
    settings, key = changed(settings, "checkpoint", every_seconds=1e-9), new_key()
    store = Store(settings.store.url)

    @flow
    def run(task):
        made = prepare(settings)
        return task(1, key, made.checkpoint, made.loaders, settings)

    def fail() -> None:
        raise OSError("torn")

    call_at_step(monkeypatch, 4, fail)
    with pytest.raises(OSError, match="torn"):
        run(train_epoch.with_options(retries=0))
    ref, num_batches = read_partial(key, settings)
    assert num_batches == 3
    store.write(store.object_path(ref.digest), bytes(ref.size))
    losses, digest = train_plainly(settings, 1)
    assert read(run(train_epoch), settings) == (losses[0], digest)
    assert "going on after" not in caplog.text


def test_past_its_deadline_an_epoch_stops_with_a_checkpoint_for_the_next_run(settings):
    key = new_key()

    message = r"epoch 1, batch {}: training\.timeout_seconds have passed; everything trained so far is kept"
    for batch in (1, 2):
        with pytest.raises(TrainingError, match=message.format(batch)):
            train_first_epoch(settings, key, time.monotonic() - 1)
        assert read_partial(key, settings)[1] == batch
        forget()
    losses, digest = train_plainly(settings, 1)
    assert read(train_first_epoch(settings, key), settings) == (losses[0], digest)


def test_the_engine_of_the_settings_trains_and_its_reports_are_logged(settings, monkeypatch, tmp_path, caplog):
    """With a model that the engine cannot trace, so that nothing is compiled."""
    pytest.importorskip("refit.engine")
    monkeypatch.syspath_prepend(tmp_path)
    body = "        return super().forward(x) if x.sum() > 0 else super().forward(-x)\n"
    monkeypatch.setattr("refit.engine.compilation.LONGEST_WAIT", 3)
    monkeypatch.setattr("refit.engine.compilation.MEDIUM_STEP", 0)
    settings = changed(with_own_forward(settings, tmp_path / "deciding.py", body), "compute", engine="auto")

    losses, digest = train_plainly(settings, 1)
    assert read(train_first_epoch(settings, new_key()), settings) == (losses[0], digest)
    assert "going on without compiling: compute.engine: expected a model whose step can be compiled whole" in caplog.text
