"""Scores the items of a source with a model of the user's own data sets."""

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import torch

from refit.code import importing_from_here
from refit.data.live_items import LIVE_EVALUATION_SIZE, LiveItems, build_ordered_loader
from refit.data.own_dataset import find_id, name_item
from refit.data.own_functions import import_function
from refit.errors import DataError, RefitError, SettingsError
from refit.runtime.accelerators import CPU
from refit.serving.saved_model import Model
from refit.serving.scoring import Scored, name_model, write_tables
from refit.store.outputs import check_output
from refit.training.evaluation import compute_outputs

ITEMS_A_BLOCK = 16 * LIVE_EVALUATION_SIZE


def score_items(
    model: Model, factory: str | None, source: str, output: str, model_name: str, on_rows: Callable[[int], object] = lambda _: None
) -> Scored:
    """Score the items of a source into one Parquet file, in their order.

    Its columns are `item` (what the data set calls an item, else its index), those of the objective, and `model`.

    Args:
        model: As `load_model` returns it.
        factory: `data.predict_factory`, which is called with the source.
        source: A path or URL.
        output: A path or fsspec URL that ends in `.parquet`.
        model_name: Value of the column `model`, such as `penguins@v3`.
        on_rows: Called with the number of items scored so far, after each block.

    Raises:
        SettingsError: There is no factory, it fails, or it does not return a map-style data set.
        DataError: An item cannot be read or scored.
    """
    check_output(output, ".parquet")
    dataset = _open(factory, source)
    return Scored(write_tables(_score(model, dataset, model_name), output, on_rows), [])


def _open(factory: str | None, source: str) -> Any:
    if factory is None:
        raise SettingsError(
            "data.predict_factory: expected your function that makes a data set of a source, as the model has learned from items of"
            " your own, found none; set it"
        )
    function = import_function(factory, "data.predict_factory")
    with importing_from_here():
        try:
            dataset = function(source)
        except RefitError:
            raise
        except Exception as error:
            raise SettingsError(
                f"data.predict_factory: expected {factory}({source!r}) to return a data set, found {type(error).__name__}: {error};"
                " correct the function or the source"
            ) from error
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise SettingsError(
            f"data.predict_factory: expected {factory} to return a map-style data set, with `__len__` and `__getitem__`, found a"
            f" {type(dataset).__name__}; give each item by its index"
        )
    if len(dataset) == 0:
        raise DataError(f"{source}: expected items to score, found none; check the path")
    return dataset


def _score(model: Model, dataset: Any, model_name: str) -> Iterator[pa.Table]:
    items = model.manifest.prepare(dataset)
    for first in range(0, len(dataset), ITEMS_A_BLOCK):
        rows = range(first, min(first + ITEMS_A_BLOCK, len(dataset)))
        x = items.take(torch.arange(rows.start, rows.stop)) if isinstance(items, LiveItems) else items[rows.start : rows.stop]
        loader = build_ordered_loader(x, torch.zeros(len(rows), dtype=torch.int64))
        outputs, _ = compute_outputs(model.module, loader, CPU, model.settings.compute.precision)
        broken = (~outputs.reshape(len(outputs), -1).isfinite().all(dim=1)).nonzero()
        if len(broken):
            raise DataError(
                f"{name_item(dataset, rows[int(broken[0])])}: expected an item that gives finite outputs, found others; look at it"
            )
        names = [find_id(dataset, index) for index in rows]
        columns = {
            "item": pa.array([str(index) if name is None else name for index, name in zip(rows, names, strict=True)]),
            **{name: pa.array(values) for name, values in model.objective.tabulate(outputs).items()},
            "model": name_model(model_name, len(rows)),
        }
        yield pa.table(columns)
