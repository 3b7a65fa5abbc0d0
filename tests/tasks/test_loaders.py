import secrets

import polars as pl
import pytest
import torch
from prefect import flow

from refit.errors import SettingsError
from refit.refs import DatasetRef, LoadersRef
from refit.settings import SettingsTree, resolve_settings
from refit.store.store import Store
from refit.tables.table_examples import load_manifest
from refit.tasks.dataset import build_dataset
from refit.tasks.loaders import build_loaders
from refit.training.trainer import open_loaders

pytestmark = pytest.mark.usefixtures("prefect_server")


@flow
def build(settings: SettingsTree, on_all_rows: bool = False) -> tuple[DatasetRef, LoadersRef]:
    snapshot = build_dataset(secrets.token_hex(32), settings, [None, None])
    return snapshot, build_loaders(secrets.token_hex(32), snapshot, settings, on_all_rows)


NOTEBOOK = resolve_settings()[0]


def test_the_handle_says_what_the_loaders_are_made_of():
    snapshot, ref = build(NOTEBOOK)
    assert (ref.dataset, ref.batch_size, ref.drop_last, ref.num_batches) == (snapshot, 2, True, 2)
    manifest = load_manifest(snapshot, Store(NOTEBOOK.store.url))
    assert snapshot.splits == {split: manifest.splits[split].ref for split in ("train", "test")}
    assert LoadersRef.model_validate_json(ref.model_dump_json()) == ref


def test_the_loaders_stay_in_the_process():
    _, ref = build(NOTEBOOK)
    train_loader, val_loader = open_loaders(ref, NOTEBOOK)
    assert len(train_loader) == ref.num_batches
    assert val_loader is None
    assert open_loaders(LoadersRef.model_validate_json(ref.model_dump_json()), NOTEBOOK)[0] is train_loader


def test_the_loaders_of_all_rows_have_those_of_every_split_in_order_and_none_to_validate():
    pl.DataFrame({"x": [float(number) for number in range(40)], "y": [number % 2 for number in range(40)]}).write_csv("rows.csv")
    settings = SettingsTree.model_validate({"data": {"source": "rows.csv"}, "loader": {"batch_size": 9}})
    store = Store(settings.store.url)
    snapshot, ref = build(settings, on_all_rows=True)
    assert (ref.splits, ref.num_batches) == (["train", "val", "test"], 5)
    loader, val_loader = open_loaders(ref, settings)
    parts = zip(*(load_manifest(snapshot, store).load_split(split, store) for split in ref.splits), strict=True)
    assert all(torch.equal(found, torch.cat(expected)) for found, expected in zip((loader.x, loader.y), parts, strict=True))
    assert val_loader is None


def test_a_batch_larger_than_the_train_rows_is_refused():
    with pytest.raises(SettingsError, match=r"loader\.batch_size: expected at most the 5 train rows"):
        build(SettingsTree.model_validate({"loader": {"batch_size": 6, "drop_last": True}}))
