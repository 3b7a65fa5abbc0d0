"""Trains by refs: each epoch starts from the checkpoint before it. Also chooses and evaluates the best. Knows no Prefect."""

import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache

import torch
from torch import nn

from refit.data import live_items, loaders, sampling
from refit.data.examples import Examples, load_examples
from refit.data.input_files import digest_inputs, join_digests
from refit.data.inputs import map_tensors
from refit.data.own_dataset import check_source
from refit.data.signature import Signature
from refit.errors import DataError, SettingsError, StoreError, TrainingError, first_line
from refit.models import building, contract
from refit.refs import DatasetRef, EpochResult, LoadersRef, Ref
from refit.runtime import devices
from refit.runtime.accelerators import CPU, is_short_of_memory, release_memory, taking_turns
from refit.runtime.forks import check_process
from refit.runtime.interruption import deliver_signal, is_signal_held
from refit.settings import PRESETS, SettingsTree
from refit.store.store import Store
from refit.texts import list_names, show
from refit.training import checkpoints, evaluation, loop, optimizers, own_loss, own_metrics, start_weights
from refit.training.influences import SPREAD
from refit.training.objective import Objective
from refit.training.objectives import LOSSES, OF_NUMBERS, build_objective
from refit.training.rare_classes import weigh_classes
from refit.training.tuning import Tuning, refuse_tuning, tune

Report = Callable[[str], object]
READING = {"data", "loader", "store"}
"""Sections of the settings that say how examples are read."""
TrainLoader = loaders.ShuffledLoader | live_items.ItemLoader
OF_OBJECTIVE = {"loss", "step", "class_weights", "label_smoothing", "monitor"}
"""Settings of training that the objective depends on."""
TRIES = 3
"""How often the best epoch is trained if its checkpoint is lost or damaged each time."""

_live: dict[str, loop.TrainingState] = {}
"""The state that is trained, under the checkpoint that it equals."""
_crowded: set[torch.device] = set()
"""Accelerators that have run out of memory in this run, so that rows stay in the memory of the CPU."""
_is_training = threading.Lock()


@contextmanager
def training_alone(on_wait: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Wait for runs in other threads of this process: generators, precision and threads are the process's.

    Precision and threads are put back at the end. `on_wait` is called if there is one to wait for.

    Raises:
        SettingsError: This process was forked from one that has trained.
    """
    check_process()
    if not _is_training.acquire(blocking=False):
        on_wait()
        _is_training.acquire()
    try:
        with devices.putting_defaults_back():
            yield
    finally:
        _crowded.clear()
        _is_training.release()


def check_splits(settings: SettingsTree, snapshot: DatasetRef) -> None:
    """Raise SettingsError for settings that need rows which the data set does not have, or do not fit what it predicts."""
    if settings.training.patience is not None and "val" not in snapshot.splits and settings.data.factory is None:
        raise SettingsError("training.patience: expected validation rows to watch, found none; set data.val")
    for name in ("tune_threshold", "calibrate"):
        if getattr(settings.training, name) and "val" not in snapshot.splits:
            raise SettingsError(f"training.{name}: expected validation rows to fit to, found none; set data.val, or drop it")
    if settings.training.refit_on_all and len(snapshot.splits) == 1:
        raise SettingsError(
            "training.refit_on_all: expected rows that training held back, found only train rows;"
            " set data.val or data.test, or drop it"
        )
    of_classes = _list_settings_of_classes(settings)
    if of_classes or settings.training.loss in LOSSES or settings.promotion.min_score is not None:
        _check_settings_of_target(settings, load_examples(snapshot, Store(settings.store.url)).signature, of_classes)


def _check_settings_of_target(settings: SettingsTree, signature: Signature, of_classes: Sequence[str]) -> None:
    """Raise SettingsError for settings that mean nothing for the kind of target, `of_classes` for all that are no classes."""
    loss, target, lowest = settings.training.loss, signature.target, settings.promotion.min_score
    has_numbers = target.kind == "numbers"
    refuse_tuning(settings.training, target)
    if of_classes and target.kind != "classes":
        raise SettingsError(f"{of_classes[0]}: expected a target of classes to set it for, found {target.kind}; drop it")
    fitting = OF_NUMBERS if has_numbers else ("cross_entropy",)
    if loss in LOSSES and loss not in fitting and not signature.tensors:
        what, task = ("numbers", "classification") if has_numbers else ("classes", "regression")
        raise SettingsError(
            f"training.loss: expected a loss of {what}, which {show(target.name)} holds: {list_names(fitting)}, found `{loss}`;"
            f" change it, or set data.task to `{task}`"
        )
    if settings.promotion.score == "f1" and target.kind == "classes" and len(target.classes) != 2:
        raise SettingsError(f"promotion.score: expected two classes for f1, found {len(target.classes)}; take macro_f1")
    if has_numbers and lowest is not None and lowest >= 0:
        raise SettingsError(
            f"promotion.min_score: expected less than 0, the best score of numbers, which is their negative loss, found {lowest:g};"
            " lower it"
        )


def _list_settings_of_classes(settings: SettingsTree) -> list[str]:
    """List the settings that are given though only classes have them."""
    training, of_preset = settings.training, PRESETS.get(settings.preset or "", {})
    given = {
        "training.class_weights": training.class_weights is not None,
        "training.label_smoothing": training.label_smoothing not in (0, of_preset.get("training.label_smoothing")),
        "training.monitor": training.monitor != "loss",
        "training.tune_threshold": training.tune_threshold,
        "training.calibrate": training.calibrate,
        "promotion.score": settings.promotion.score in SPREAD,
    }
    return [name for name, is_given in given.items() if is_given]


def build_loaders(snapshot: DatasetRef, settings: SettingsTree, on_all_rows: bool = False) -> LoadersRef:
    """Make the loaders of the train and validation rows, or of all rows to train on, and say what they are made of."""
    infos = load_examples(snapshot, Store(settings.store.url)).splits
    splits = [*infos] if on_all_rows else ["train"]
    batch_size = loaders.choose_batch_size(settings.loader.batch_size, infos["train"].rows)
    drop_last = settings.loader.drop_last
    num_batches = loaders.count_batches(sum(infos[split].rows for split in splits), batch_size, drop_last)
    ref = LoadersRef(
        dataset=snapshot,
        batch_size=batch_size,
        drop_last=drop_last,
        num_batches=num_batches,
        splits=splits,
        sampler=settings.loader.sampler,
    )
    open_loaders(ref, settings)
    return ref


def _check_inputs(examples: Examples, x: object, settings: SettingsTree, store: Store) -> None:
    """Raise for functions of others, and DataError if files that items are read from have changed since the data set was built."""
    check_source(examples.source, settings)
    inputs = settings.data.inputs
    is_live = isinstance(x, live_items.LiveItems)
    if is_live and examples.inputs is not None and inputs and join_digests(digest_inputs(inputs, store)) != examples.source_digest:
        raise DataError("data.inputs: expected the same bytes as when the run began, found others; run again")


def open_loaders(
    ref: LoadersRef, settings: SettingsTree, device: torch.device = CPU, is_crowded: bool = False
) -> tuple[TrainLoader, loaders.Batches | None]:
    """Return the loaders of the rows to train on and, if others are left, of the validation rows; the last ones made are kept."""
    return _open_loaders(ref.model_dump_json(), settings.model_dump_json(include=READING), device, is_crowded)


def _read_options(settings: SettingsTree) -> live_items.LoaderOptions:
    loader = settings.loader
    return live_items.LoaderOptions(loader.num_workers, loader.prefetch_factor, loader.pin_memory, loader.persistent_workers)


@lru_cache(maxsize=1)
def _open_loaders(
    json: str, settings_json: str, device: torch.device, is_crowded: bool
) -> tuple[TrainLoader, loaders.Batches | None]:
    ref, settings = LoadersRef.model_validate_json(json), SettingsTree.model_validate_json(settings_json)
    store, options = Store(settings.store.url), _read_options(settings)
    examples = load_examples(ref.dataset, store)
    parts = [examples.load_split(split, store) for split in ref.splits]
    x, y = live_items.join_splits(parts)
    _check_inputs(examples, x, settings, store)
    weights = sampling.weigh(ref.sampler, y)
    train_loader: TrainLoader = (
        live_items.ItemLoader(x, ref.batch_size, ref.drop_last, device, options, weights)
        if isinstance(x, live_items.LiveItems)
        else loaders.build_train_loader(x, y, ref.batch_size, ref.drop_last, device, is_crowded, weights)
    )
    if "val" not in examples.splits or "val" in ref.splits:
        return train_loader, None
    return train_loader, live_items.build_ordered_loader(*examples.load_split("val", store), device, is_crowded, options)


def start(
    snapshot: DatasetRef,
    settings: SettingsTree,
    report: Report,
    warn: Report,
    prepare: Callable[[loop.TrainingState, Signature], object] | None = None,
) -> Ref:
    """Seed, build model and optimizer, and keep them as the checkpoint that epoch 1 starts from.

    Args:
        snapshot: The data set.
        settings: Of the run.
        report: Receives a line about the device.
        warn: Receives a line about state of the model that no checkpoint holds.
        prepare: Changes the fresh state, such as its weights, for inputs and classes of this signature.

    Raises:
        SettingsError: The user's model cannot be used.
    """
    store = Store(settings.store.url)
    examples = load_examples(snapshot, store)
    signature = examples.signature
    optimizers.build_learning_rate(settings.optimizer, 1)  # refuses what is no schedule
    x, y = examples.load_sample(store)
    if signature.target.kind != "none":
        contract.check_contract(settings.model, signature, x)
    if signature.target.kind == "classes":
        own_loss.check_loss(settings.training.loss, signature)
    with _explaining(devices.list_candidates(settings.compute)[-1], settings):
        state = _build_state(examples, settings, report)
    unkept = [] if signature.target.kind == "none" else contract.find_unkept_state(settings.model, signature, x)
    if unkept:
        warn(
            f"model.factory: {settings.model.factory} changes {', '.join(unkept)} in training, which no checkpoint and no saved"
            " version holds; if results depend on it, they will differ when a run is resumed and when the model is loaded:"
            " make it a buffer"
        )
    if settings.model.weights is not None:
        report(start_weights.load_start(state.model, settings.model.weights))
    if signature.tensors or (signature.target.kind == "numbers" and (settings.training.loss or "squared") not in LOSSES):
        setting = "training.loss" if settings.training.step is None else f"training.step {settings.training.step}"
        x, y = map_tensors(lambda part: part.to(state.device), (x, y))
        own_loss.check_objective(state.objective, state.model, x, y, setting)
    if prepare is not None:
        prepare(state, signature)
    return _keep(state, settings, store)


def train_epoch(
    epoch: int,
    key: str,
    checkpoint: Ref,
    loaders_ref: LoadersRef,
    settings: SettingsTree,
    report: Report,
    deadline: float | None = None,
) -> EpochResult:
    """Train one epoch from the checkpoint before it, or from inside it, where an earlier try was cut short.

    If an accelerator runs out of memory, it is tried again once other runs on this machine have left it, with the rows in the
    memory of the CPU.

    Args:
        epoch: Counted from 1.
        key: Names what is kept of the epoch while it is not finished.
        checkpoint: The state after the epoch before.
        loaders_ref: What the loaders are made of.
        settings: Of the run.
        report: Receives lines about what takes long.
        deadline: When to stop, on the clock of `time.monotonic`.

    Raises:
        TrainingError: A loss or weight is not finite, the time is up, or the memory of an accelerator does not suffice.
        SettingsError: The model cannot be trained on the device.
    """
    given = epoch, key, checkpoint, loaders_ref, settings, report, deadline
    device = devices.list_candidates(settings.compute)[-1]  # the accelerator, if there is one
    with _explaining(device, settings):
        if device not in _crowded:
            try:
                return _train_epoch(*given, device)
            except RuntimeError as error:
                if not is_short_of_memory(error):
                    raise
                report(f"{device} is short of memory, trying again with the rows on the CPU: {first_line(error)}")
            _crowded.add(device)
            _open_loaders.cache_clear()
            gc.collect()
            release_memory(device)
        return _train_epoch(*given, device)


@contextmanager
def _explaining(device: torch.device, settings: SettingsTree) -> Iterator[None]:
    """Turn errors of an accelerator that a user can do something about into errors that say so."""
    try:
        yield
    except RuntimeError as error:
        found = first_line(error)
        if is_short_of_memory(error):
            raise TrainingError(
                f"compute.device: expected room for the network and a batch on {device}, found: {found};"
                " lower loader.batch_size, end what else runs there, or use `cpu`; the same command goes on from here"
            ) from error
        if "CUBLAS_WORKSPACE_CONFIG" in found:
            raise SettingsError(
                f"compute.deterministic: expected a process that computes nothing on {device} before it trains, found one whose"
                f" earlier products decided how cuBLAS computes, or another CUBLAS_WORKSPACE_CONFIG than {devices.WORKSPACE}; set"
                " it to this before Python starts, restart the notebook, or set compute.deterministic to false"
            ) from error
        if "deterministic" in found and device.type != "cpu":
            raise SettingsError(
                f"compute.deterministic: expected a model whose operations give the same bits each time on {device}, found:"
                f" {found}; change the model, or set compute.deterministic to false"
            ) from error
        if ("same device" in found or "Placeholder storage" in found) and settings.model.factory is not None:
            raise SettingsError(
                f"model.factory: expected {settings.model.factory} to make its tensors on the device of its inputs, {device},"
                f" found: {found}; make them buffers, or pass `device=x.device`"
            ) from error
        raise


def _train_epoch(
    epoch: int,
    key: str,
    checkpoint: Ref,
    loaders_ref: LoadersRef,
    settings: SettingsTree,
    report: Report,
    deadline: float | None,
    accelerator: torch.device,
) -> EpochResult:
    store, is_crowded = Store(settings.store.url), accelerator in _crowded

    def tell_of_waiting() -> None:
        report(f"waiting until other runs of this machine leave {accelerator}")

    def stop_waiting() -> None:
        deliver_signal()
        if deadline is not None:
            loop.check_deadline(deadline, epoch, 0)

    with ExitStack() as turns:
        if is_crowded:
            turns.enter_context(taking_turns(accelerator, True, tell_of_waiting, stop_waiting))
        # Taken out, so that a state that a failed try leaves half-trained is never found again.
        state = _live.pop(_live_key(checkpoint, settings), None)
        partial = checkpoints.find_partial(key, store)
        if state is None or partial is not None:
            state = _build_state(load_examples(loaders_ref.dataset, store), settings, report)
            checkpoints.load_state(partial or checkpoint, state, store)
            if partial is not None:
                report(f"epoch {epoch}: going on after batch {state.num_batches}")
        device = state.device
        if not is_crowded:
            turns.enter_context(taking_turns(device, False, tell_of_waiting, stop_waiting))
        devices.prepare_compute(settings.compute, device)
        train_loader, val_loader = open_loaders(loaders_ref, settings, device, is_crowded)
        num_steps = loop.count_steps(loaders_ref.num_batches, settings.training.accumulate_batches, settings.training.num_epochs)
        steps_an_epoch = num_steps // settings.training.num_epochs
        learning_rate = optimizers.build_learning_rate(settings.optimizer, num_steps, steps_an_epoch, state.losses)
        is_constant = settings.training.regularization == "constant"
        if not is_constant:
            optimizers.set_regularization(state.model, state.optimizer, (epoch - 1) / settings.training.num_epochs)
        clock = loop.PauseClock(settings.checkpoint.every_seconds, deadline)
        log = None
        with devices.computing_on(device, settings.compute), checkpoints.saving_partials(key, store) as save_partial:
            while log is None:
                log = loop.train_epoch(
                    state,
                    train_loader,
                    learning_rate,
                    device=device,
                    precision=settings.compute.precision,
                    engine=settings.compute.engine if is_constant else "eager",
                    accumulate_batches=settings.training.accumulate_batches,
                    max_grad_norm=settings.training.max_grad_norm,
                    val_loader=val_loader,
                    should_pause=lambda: is_signal_held() or clock.is_due(),
                    report=report,
                )
                if log is None:
                    save_partial(state)
                    deliver_signal()
                    clock.restart(state)
    if settings.optimizer.schedule == optimizers.PLATEAU:
        state.losses.append(log.train_loss if log.val_loss is None else log.val_loss)
    result = EpochResult(
        epoch=epoch,
        checkpoint=_keep(state, settings, store),
        log=checkpoints.save_report("log", log, store),
        train_loss=log.train_loss,
        val_loss=log.val_loss,
        val_score=log.val_score,
    )
    checkpoints.drop_partial(key, store)
    return result


def evaluate(split: str, checkpoint: Ref, snapshot: DatasetRef, settings: SettingsTree) -> Ref:
    """Score the weights of a checkpoint on the rows of one split, on the CPU as later predictions, and keep the metrics."""
    make_room()
    store = Store(settings.store.url)
    examples = load_examples(snapshot, store)
    x, y = examples.load_split(split, store)
    _check_inputs(examples, x, settings, store)
    devices.prepare_compute(settings.compute)
    model = checkpoints.load_weights(checkpoint, building.build_for_weights(settings.model, examples.signature), store)
    metrics = evaluation.evaluate(
        model,
        live_items.build_ordered_loader(x, y, options=_read_options(settings)),
        _build_objective(examples, settings, is_judge=True, tuning=tune_model(model, examples, settings)),
        CPU,
        settings.compute.precision,
        own_metrics.import_metrics(settings.training.metrics),
    )
    return checkpoints.save_report("metrics", metrics, store)


def tune_model(model: nn.Module, examples: Examples, settings: SettingsTree) -> Tuning | None:
    """Fit to the validation rows how the outputs of a model are read; None if the settings do not ask for it."""
    training = settings.training
    if not (training.tune_threshold or training.calibrate):
        return None
    loader = live_items.build_ordered_loader(
        *examples.load_split("val", Store(settings.store.url)), options=_read_options(settings)
    )
    outputs, target = evaluation.compute_outputs(model, loader, CPU, settings.compute.precision)
    evaluation.refuse_non_finite_outputs(outputs, "validation")
    return tune(outputs, target, training)


def make_room() -> None:
    """Training is over: give up its rows, and on an accelerator, which others may use, the state too."""
    _open_loaders.cache_clear()
    for device in {state.device for state in [*_live.values()]} - {CPU}:
        _live.clear()
        gc.collect()
        release_memory(device)


class Fit:
    """The epochs of a run as they come: which is the best, whether to stop, and which checkpoints to keep."""

    def __init__(self, settings: SettingsTree, num_epochs: int, num_batches: int) -> None:
        self.epochs: list[EpochResult] = []
        self._num_epochs, self._keep = num_epochs, settings.checkpoint.keep
        self._patience = loop.choose_patience(settings.training.patience, num_batches)
        self._monitor = settings.training.monitor
        self._store = Store(settings.store.url)

    @property
    def best(self) -> EpochResult:
        """The epoch whose weights the run keeps."""
        return self.epochs[loop.best_epoch(self._watched) - 1]

    @property
    def is_whole(self) -> bool:
        """Whether the checkpoint of the best epoch is there and whole."""
        return self._store.are_whole(self.best.checkpoint.digests)

    def lose(self) -> StoreError:
        """Make the error for a best epoch whose checkpoint was lost each time."""
        path = self._store.location(self._store.object_path(self.best.checkpoint.digest))
        return StoreError(
            f"checkpoint {path}: expected it to be whole after epoch {self.best.epoch}, found it damaged or gone {TRIES} times; "
            "check the disk, and whether something else removes files there, then run again"
        )

    @property
    def is_over(self) -> bool:
        """Whether no further epoch is to come."""
        return len(self.epochs) == self._num_epochs or loop.has_lost_patience(self._watched, self._patience)

    @property
    def _watched(self) -> Sequence[float | None]:
        return [epoch.watch(self._monitor) for epoch in self.epochs]

    def add(self, result: EpochResult) -> None:
        """Add the next epoch; checkpoints that nothing needs any more are removed."""
        best_before = [self.best] if self.epochs else []
        self.epochs.append(result)
        if self._keep is not None:
            stale = [*self.epochs[-self._keep - 1 : -self._keep], *best_before]
            checkpoints.prune_checkpoints(stale, [*self.epochs[-self._keep :], self.best], self._store)


def _build_state(examples: Examples, settings: SettingsTree, report: Report) -> loop.TrainingState:
    """Build the state that training starts from, on the device that the settings, or the size of the work, choose."""

    def choose_device(model: nn.Module) -> torch.device:
        num_rows = examples.splits["train"].rows
        batch_size = loaders.choose_batch_size(settings.loader.batch_size, num_rows)
        work = devices.Work(sum(parameter.numel() for parameter in model.parameters()), batch_size, num_rows)
        device = devices.choose_device(settings.compute, work)
        devices.prepare_compute(settings.compute, device)
        if len(devices.list_candidates(settings.compute)) > 1:
            report(f"device: {devices.describe_choice(settings.compute, work)}")
        return device

    return loop.build_training_state(
        settings.model,
        settings.optimizer,
        examples.signature,
        seed=settings.seed,
        device=choose_device,
        objective=_build_objective(examples, settings),
    )


def _build_objective(examples: Examples, settings: SettingsTree, is_judge: bool = False, tuning: Tuning | None = None) -> Objective:
    """Build the objective of a run; classes are judged by the cross-entropy, whatever they were trained by."""
    target, training = examples.signature.target, settings.training
    if is_judge and target.kind == "classes":
        return build_objective(target, None, training.step, tuning=tuning)
    counts = examples.splits["train"].class_counts
    weights = training.class_weights and weigh_classes(training.class_weights, examples.list_labels(), counts)
    return build_objective(
        target,
        training.loss,
        training.step,
        weights=weights or None,
        smoothing=training.label_smoothing,
        monitor=training.monitor,
    )


def _keep(state: loop.TrainingState, settings: SettingsTree, store: Store) -> Ref:
    checkpoint = checkpoints.save_state(state, store)
    _live.clear()
    _live[_live_key(checkpoint, settings)] = state
    return checkpoint


def _live_key(checkpoint: Ref, settings: SettingsTree) -> str:
    """Two models may have the same weights, so the digest of a checkpoint alone does not tell them apart."""
    return (
        checkpoint.digest
        + settings.model_dump_json(include={"model", "optimizer", "compute"})
        + settings.training.model_dump_json(include=OF_OBJECTIVE)
    )
