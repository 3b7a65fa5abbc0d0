"""Scores files of any size with a saved model, in bounded memory."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from refit.data.loaders import EVALUATION_BATCH_SIZE, build_evaluation_loader
from refit.errors import DataError, SettingsError
from refit.refs import Deviation
from refit.runtime.accelerators import CPU
from refit.serving.saved_model import Model
from refit.settings import DataSettings
from refit.store.outputs import check_output, replacing
from refit.tables.deviations import Deviations
from refit.tables.manifest import Manifest, expect_table
from refit.tables.preprocessing import apply_columns
from refit.tables.sources.data_file import Like
from refit.tables.sources.located_rows import LocatedRows
from refit.tables.sources.opening import open_source
from refit.training.evaluation import compute_outputs

# A multiple of the evaluation batch, so that the model gets the same batches as from `Model.predict`, and gives the same bits.
ROWS_PER_BATCH = 8 * EVALUATION_BATCH_SIZE


class Scored(NamedTuple):
    """Result of scoring a source."""

    num_rows: int
    deviations: list[Deviation]


def score_files(
    model: Model,
    source: str,
    output: str,
    model_name: str,
    on_rows: Callable[[int], object] = lambda _: None,
    keep: Sequence[str] = (),
    is_strict: bool = False,
    rows_per_batch: int = ROWS_PER_BATCH,
) -> Scored:
    """Score a file, folder or glob of CSV or Parquet files into one Parquet file, in the order of files and rows.

    Its columns are those in `keep`, then `class` (typed like the classes) and `probability of <label>` for each class (float32), or
    `prediction` (float64), and `model`. The file appears once it is complete; after an error, an earlier file stays.

    Args:
        model: As `load_model` returns it.
        source: A path or fsspec URL.
        output: A path or fsspec URL that ends in `.parquet`.
        model_name: Value of the column `model`, such as `penguins@v3`.
        on_rows: Called with the number of rows scored so far, after each batch.
        keep: Input columns to copy, as they were read; all cells of CSV are text.
        is_strict: Whether to refuse rows that deviate from the train rows.
        rows_per_batch: Rows that are read and scored at a time.

    Raises:
        SettingsError: `output` does not end in `.parquet`, or is part of `source`.
        DataError: A file, column or row cannot be scored, or, if strict, rows deviate.
        RefitError: `output` cannot be written.
    """
    check_files(source, output)
    names = [*keep, *model.objective.list_columns(), "model"]
    twice = next((name for position, name in enumerate(names) if name in names[:position]), None)
    if twice is not None:
        raise DataError(f"--keep: expected columns once, and named unlike those of the predictions, found `{twice}`; leave it out")
    manifest = expect_table(model.manifest, "refit predict")
    columns = [column.name for column in manifest.columns]
    deviations = Deviations(manifest.profiles)
    batches = open_source(source, like=_find_like(manifest)).iterate(columns, keep, rows_per_batch)

    def score() -> Iterator[pa.Table]:
        for batch in batches:
            yield _score(model, manifest, batch, model_name, keep, deviations)
        if is_strict and (found := deviations.find()):
            mistake = f"{source}: expected rows like those that {model_name} learned from, found"
            raise DataError(mistake, *(deviation.describe() for deviation in found))

    return Scored(write_tables(score(), output, on_rows), deviations.find())


def write_tables(tables: Iterator[pa.Table], output: str, on_rows: Callable[[int], object]) -> int:
    """Write tables, one or more, into one Parquet file that appears when all are made; return the number of rows.

    Args:
        tables: Of the same columns.
        output: A path or fsspec URL.
        on_rows: Called with the number of rows so far, after each table.
    """
    first = next(tables)
    num_rows = 0
    with replacing(output) as path, pq.ParquetWriter(path, first.schema, compression="zstd") as writer:
        for table in itertools.chain([first], tables):
            writer.write_table(table)
            num_rows += table.num_rows
            on_rows(num_rows)
    return num_rows


def name_model(model_name: str, num_rows: int) -> pa.Array:
    """Make the column that names the model of each row."""
    return pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), num_rows), [model_name])


def check_files(source: str, output: str) -> None:
    """Raise for an impossible output, for a missing source, and for one whose first file cannot be read."""
    check_output(output, ".parquet")
    table = open_source(source, DataSettings(header=False))  # whether there is one, the model knows
    if table.includes(output):
        raise SettingsError(
            f"--output: expected a file outside of the rows to score, found {output} in {source}; write it elsewhere"
        )
    table.names()


def _find_like(manifest: Manifest) -> Like | None:
    """What files must be written like to mean the same as those that the model learned from."""
    dialect = manifest.dialect
    names = tuple(column.name for column in manifest.columns)
    return None if dialect is None else Like(dialect, "the files that the model learned from", "or train on such files", names)


def _score(
    model: Model, manifest: Manifest, batch: LocatedRows, model_name: str, keep: Sequence[str], deviations: Deviations
) -> pa.Table:
    x = apply_columns(manifest.columns, batch.frame, batch.locate, observe=deviations.count)
    loader = build_evaluation_loader(x, torch.zeros(len(x), dtype=torch.int64))
    outputs, _ = compute_outputs(model.module, loader, CPU, model.settings.compute.precision)
    if not outputs.sum().isfinite():  # a quick check of all rows
        _refuse_non_finite(outputs, batch)
    columns = {
        **{name: batch.frame[name].to_arrow() for name in keep},
        **{name: pa.array(values) for name, values in model.objective.tabulate(outputs).items()},
        "model": name_model(model_name, len(x)),
    }
    return pa.table(columns)


def _refuse_non_finite(outputs: torch.Tensor, batch: LocatedRows) -> None:
    """Raise DataError for the first row whose outputs `(N, C)` are not finite, if there is one."""
    broken = (~outputs.isfinite().all(dim=1)).nonzero()
    if len(broken):
        row = int(broken[0])
        raise DataError(
            f"{batch.locate(row)}: expected values that give finite outputs, found {outputs[row].tolist()};"
            " correct extreme values of the row, or leave them empty"
        )
