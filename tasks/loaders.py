"""Seeded loader creation as a task; the loaders stay in the process, others get a handle."""

from functools import lru_cache

import torch
from prefect import task

from refit.data import loaders
from refit.data.examples import load_examples
from refit.refs import DatasetRef, LoadersRef
from refit.runtime import devices
from refit.settings import SettingsTree
from refit.store.store import Store
from refit.tasks.caching import CACHED, RETRIED


@task(task_run_name="build loaders", **CACHED, **RETRIED)
def build_loaders(
    key: str,  # noqa: ARG001
    snapshot: DatasetRef,
    settings: SettingsTree,
    on_all_rows: bool = False,
) -> LoadersRef:
    """Make the loaders of the train and validation rows, or of all rows to train on, and say what they are made of."""
    infos = load_examples(snapshot, Store(settings.store.url)).splits
    splits = [*infos] if on_all_rows else ["train"]
    batch_size = loaders.choose_batch_size(settings.loader.batch_size, infos["train"].rows)
    drop_last = settings.loader.drop_last
    num_batches = loaders.count_batches(sum(infos[split].rows for split in splits), batch_size, drop_last)
    ref = LoadersRef(dataset=snapshot, batch_size=batch_size, drop_last=drop_last, num_batches=num_batches, splits=splits)
    open_loaders(ref, settings.store.url, devices.choose_device(settings.compute.device))
    return ref


def open_loaders(
    ref: LoadersRef, url: str, device: torch.device = loaders.CPU
) -> tuple[loaders.ShuffledLoader, loaders.Batches | None]:
    """Return the loaders of the rows to train on and, where others are left, of the validation rows; the last made are kept."""
    return _open_loaders(ref.model_dump_json(), url, device)


def close_loaders() -> None:
    """Let go of the rows of the loaders made last."""
    _open_loaders.cache_clear()


@lru_cache(maxsize=1)
def _open_loaders(json: str, url: str, device: torch.device) -> tuple[loaders.ShuffledLoader, loaders.Batches | None]:
    ref, store = LoadersRef.model_validate_json(json), Store(url)
    examples = load_examples(ref.dataset, store)
    parts = [examples.load_split(split, store) for split in ref.splits]
    x, y = map(torch.cat, zip(*parts, strict=True)) if len(parts) > 1 else parts[0]
    train_loader = loaders.build_train_loader(x, y, ref.batch_size, ref.drop_last, device)
    if "val" not in examples.splits or "val" in ref.splits:
        return train_loader, None
    return train_loader, loaders.build_evaluation_loader(*examples.load_split("val", store), device)
