"""Builds the data set of a run: reads, types, splits and fits, and freezes inputs and manifest in the store."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import safetensors.torch
from pydantic import BaseModel, ConfigDict, StrictBool, StrictInt, StrictStr
from torch import Tensor

from refit.data.preprocessing import AnyColumn, apply_columns, fit_columns, name_inputs
from refit.data.profiles import Profile, profile_columns
from refit.data.schema import Kind, Rows, check_columns, convert_column, convert_target, find_kind
from refit.data.sources import Table, list_names, read_files, read_table
from refit.data.splits import Hashes, hash_rows, split_by_time, split_randomly
from refit.errors import DataError
from refit.refs import Ref
from refit.settings import DataSettings
from refit.store import Store

DEFAULT_FRACTION = 0.15
MAX_CLASSES_SHOWN = 10
ROWS_A_BLOCK = 65_536
"""Rows that are turned into inputs at a time, so that those of a whole split need not be in memory."""
TEST_ROWS = "test rows"


class SplitInfo(BaseModel):
    """One split: its rows, its rows of each class (in the manifest's order), and the blob that holds its tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    class_counts: list[int]
    digest: str
    size: int

    @property
    def ref(self) -> Ref:
        """The blob."""
        return Ref(kind="arrays", digest=self.digest, size=self.size)


class Manifest(BaseModel):
    """What scoring and training need to know of a data set: how rows become inputs, what is predicted, where the splits are.

    Rows are counted over `source` and `test_source` together, `source_rows` over `source` alone, with or without a target. The
    source digests cover the files' bytes, in order, and neither their names nor their times. `test_rows` are all cells of the test
    rows as they were read; `time_column` is that of a `time` split. The profiles are of the train rows, and cover the target too,
    as categories.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str
    classes: list[StrictBool | StrictInt | StrictStr]
    columns: list[AnyColumn]
    profiles: list[Profile]
    time_column: str | None
    splits: dict[str, SplitInfo]
    test_rows: Ref | None
    rows: int
    rows_without_target: int
    source_rows: int
    dropped_columns: dict[str, str]
    source_digest: str
    test_source_digest: str | None

    @property
    def input_names(self) -> list[str]:
        """Names of the F inputs."""
        return name_inputs(self.columns)

    def describe(self) -> list[str]:
        """Lines for people: rows, columns by kind, classes, and what was dropped."""
        kinds = [column.kind for column in self.columns]
        columns = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
        splits = ", ".join(f"{info.rows} {split}" for split, info in self.splits.items())
        totals = [sum(counts) for counts in zip(*(info.class_counts for info in self.splits.values()), strict=True)]
        largest = sorted(zip(self.classes, totals, strict=True), key=lambda pair: -pair[1])
        classes = ", ".join(f"{label} ({total})" for label, total in largest[:MAX_CLASSES_SHOWN])
        more = f" and {len(largest) - MAX_CLASSES_SHOWN} more" if len(largest) > MAX_CLASSES_SHOWN else ""
        lines = [
            f"rows: {self.rows} ({splits})",
            f"columns: {columns}, as {len(self.input_names)} inputs",
            f"classes of {self.target}: {classes}{more}",
        ]
        if self.rows_without_target:
            lines.append(f"dropped: {self.rows_without_target} rows without a value of {self.target}")
        return lines + [f"dropped: column {name}, {reason}" for name, reason in self.dropped_columns.items()]


def build_dataset(settings: DataSettings, seed: int, store: Store) -> Ref:
    """Freeze the data set that the settings describe; the same rows and settings give the same digest.

    All that is learned from rows is learned from train rows, but the names of the classes. Nothing is stored until all is made.

    Args:
        settings: Which rows, and how they are divided.
        seed: Decides which rows a `random` split takes.
        store: Where it goes.

    Returns:
        The ref of the manifest.

    Raises:
        DataError: A file, column or row is not what training needs.
    """
    table = read_table(settings.source)
    test_table = _read_test_table(settings, table)
    kinds, frame = _type_features(settings, table)
    target_kind, target = _type_target(settings, table)
    classes = target.drop_nulls().unique().sort()
    if len(classes) < 2:
        raise DataError(
            f"{table.name}, column `{target.name}`: expected two classes or more, found {classes.to_list()}; add others"
        )
    y = _index_classes(target, classes, table)
    parts = _split(settings, seed, table, frame.with_columns(target), y, classes.to_list(), has_test=test_table is not None)
    try:
        columns = fit_columns(frame, kinds, settings.null_values, table.is_raw, parts["train"])
    except DataError as error:
        raise DataError(f"{table.name}, {error}") from error
    if not columns:
        raise DataError(f"{table.name}: expected a column to learn from, found no value in any for train rows; check data.features")

    profiles = profile_columns(frame.with_columns(target), {**kinds, target.name: "categorical"}, parts["train"])
    time_column = settings.time_column if settings.split == "time" else None
    hashes = _identify(frame, columns, target, table.frame, time_column)
    num_unlabelled, raw, test_rows = y.null_count(), table.frame, parts.get("test", np.array([], np.int64))
    freeze = {split: partial(_freeze, columns, frame, rows, y, hashes, len(classes), table) for split, rows in parts.items()}
    if test_table is not None:
        frame, target, y = _convert_test_rows(settings, test_table, kinds, target_kind, classes)
        hashes = _identify(frame, columns, target, test_table.frame, time_column)
        num_unlabelled += y.null_count()
        raw, test_rows = test_table.frame, np.flatnonzero(y.is_not_null().to_numpy())
        freeze["test"] = partial(_freeze, columns, frame, test_rows, y, hashes, len(classes), test_table)
    with store.temporary_folder() as folder:
        counts = {split: write(folder / split) for split, write in freeze.items()}
        if len(test_rows):
            _freeze_rows(raw[test_rows], folder / TEST_ROWS)
        sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
        digests = {name: store.put_file(folder / name) for name in sizes}

    fitted = {column.name for column in columns}
    manifest = Manifest(
        target=settings.target,
        classes=classes.to_list(),
        columns=columns,
        profiles=profiles,
        time_column=time_column,
        splits={
            split: SplitInfo(rows=sum(counts[split]), class_counts=counts[split], digest=digests[split], size=sizes[split])
            for split in counts
        },
        test_rows=Ref(kind="rows", digest=digests[TEST_ROWS], size=sizes[TEST_ROWS]) if TEST_ROWS in digests else None,
        rows=sum(map(sum, counts.values())),
        rows_without_target=num_unlabelled,
        source_rows=table.frame.height,
        dropped_columns={name: "no value in the train rows" for name in kinds if name not in fitted},
        source_digest=table.digest,
        test_source_digest=test_table.digest if test_table else None,
    )
    data = manifest.model_dump_json().encode()
    return Ref(kind="dataset", digest=store.put(data), size=len(data))


def load_manifest(ref: Ref, store: Store) -> Manifest:
    """Load what `build_dataset` returned the ref of."""
    return Manifest.model_validate_json(store.get(ref.digest))


def check_sources(manifest: Manifest, digests: Sequence[str | None]) -> None:
    """Raise DataError if the bytes of `data.source` or `data.test_source` are no longer those of these digests."""
    for name, before, now in zip(
        ("source", "test_source"), digests, (manifest.source_digest, manifest.test_source_digest), strict=True
    ):
        if before is not None and before != now:
            raise DataError(f"data.{name}: expected the bytes that were there when the run began, found others; run again")


def load_split(manifest: Manifest, split: str, store: Store) -> tuple[Tensor, Tensor]:
    """Load the frozen tensors of `train`, `val` or `test`; no other split is read.

    Returns:
        Inputs, float32, and class indices, int64.

    Raises:
        DataError: The data set has no such split.

    Shape:
        Returns (N, F) and (N,).
    """
    tensors = _load_arrays(manifest, split, store)
    return tensors["x"], tensors["y"]


def load_hashes(manifest: Manifest, split: str, store: Store) -> Hashes:
    """Load what identifies the rows of a split, `(N,)`: a hash of their columns, target and time; raises as `load_split` does."""
    return _load_arrays(manifest, split, store)["hashes"].numpy().view(np.uint64)


def load_test_rows(manifest: Manifest, store: Store) -> pl.DataFrame:
    """Load the test rows with all their cells as they were read, in the order of `load_split`; raises as `load_split` does."""
    if manifest.test_rows is None:
        raise _lacking("test", manifest)
    with store.local_file(manifest.test_rows.digest) as path:
        return pl.read_parquet(path, glob=False, hive_partitioning=False)


def convert_rows(manifest: Manifest, rows: pl.DataFrame) -> tuple[pl.Series, Hashes]:
    """Return the true classes of raw rows as text, and what identifies the rows in the eyes of this data set, each `(N,)`.

    Raises:
        DataError: A column is missing, or a value cannot be converted.
    """
    names = [*(column.name for column in manifest.columns), manifest.target, manifest.time_column]
    check_columns("data.source", filter(None, names), rows.columns, "the table")
    frame = pl.DataFrame(
        [convert_column(rows[column.name], column.kind, column.null_values, _count_rows) for column in manifest.columns]
    )
    kinds: dict[type, Kind] = {bool: "boolean", int: "numeric", str: "categorical"}
    null_values = manifest.columns[0].null_values
    _, target = convert_target(rows[manifest.target], kinds[type(manifest.classes[0])], null_values, _count_rows)
    return target.cast(pl.String), _identify(frame, manifest.columns, target, rows, manifest.time_column)


def _count_rows(index: int) -> str:
    return f"row {index + 1} of the test rows"


def _load_arrays(manifest: Manifest, split: str, store: Store) -> dict[str, Tensor]:
    if split not in manifest.splits:
        raise _lacking(split, manifest)
    with store.local_file(manifest.splits[split].digest) as path:
        return safetensors.torch.load_file(path, backend="pread")  # a mapped file would have to stay as long as the tensors


def _lacking(split: str, manifest: Manifest) -> DataError:
    return DataError(
        f"expected a split of the data set, found no `{split}` among {list_names(manifest.splits)}; check its fraction"
    )


def _read_test_table(settings: DataSettings, table: Table) -> Table | None:
    """The test rows that come on their own, if any."""
    test = table.test
    if settings.test_source is not None:
        if test is not None:
            raise DataError(
                f"data.test_source: expected none, as {table.name} brings test rows, found {settings.test_source}; drop it"
            )
        test = read_files(settings.test_source)
        if test.digest == table.digest:
            raise DataError(
                f"{test.name}: expected test rows of their own, found the same bytes as in {table.name}; name other files"
            )
    if test is not None and settings.test_fraction:
        raise DataError(
            f"data.test_fraction: expected none, as test rows come on their own, found {settings.test_fraction}; drop it"
        )
    return test


def _type_features(settings: DataSettings, table: Table) -> tuple[dict[str, Kind], pl.DataFrame]:
    """The kind of each column to learn from, and the columns, converted where they are no numbers already."""
    present = table.frame.columns
    features = settings.features
    check_columns("data.target", [settings.target], present, table.name)
    check_columns("data.features", features or [], present, table.name)
    check_columns("data.categorical", settings.categorical, present, table.name)
    if features is None:
        apart = [settings.target, settings.time_column if settings.split == "time" else None]
        features = [name for name in present if name not in apart]
    if not features:
        raise DataError(f"{table.name}: expected a column to learn from, found {list_names(present)}; name some in data.features")
    if settings.target in features:
        raise DataError(f"data.features: expected columns to learn from, found the target `{settings.target}`; take it out")
    kinds: dict[str, Kind] = {}
    converted = []
    for name in dict.fromkeys(features):
        if name in settings.categorical:
            kinds[name] = "categorical"
            values = convert_column(table.frame[name], "categorical", settings.null_values, table.locate)
        else:
            kinds[name], values = find_kind(table.frame[name], settings.null_values, table.locate)
        # Numbers stay as they are: a second copy would double what a table of numbers takes.
        converted.append(table.frame[name] if kinds[name] == "numeric" and table.frame[name].dtype.is_numeric() else values)
    return kinds, pl.DataFrame(converted)


def _type_target(settings: DataSettings, table: Table) -> tuple[Kind, pl.Series]:
    kind: Kind | None = "categorical" if settings.target in settings.categorical else None
    return convert_target(table.frame[settings.target], kind, settings.null_values, table.locate)


def _convert_test_rows(
    settings: DataSettings, table: Table, kinds: dict[str, Kind], target_kind: Kind, classes: pl.Series
) -> tuple[pl.DataFrame, pl.Series, pl.Series]:
    """The features, classes and class indices of rows from `test_source`, converted as those of `source` were."""
    check_columns("data.test_source", [*kinds, settings.target], table.frame.columns, table.name)
    frame = pl.DataFrame(
        [convert_column(table.frame[name], kind, settings.null_values, table.locate) for name, kind in kinds.items()]
    )
    _, target = convert_target(table.frame[settings.target], target_kind, settings.null_values, table.locate)
    if target.null_count() == len(target):
        raise DataError(f"{table.name}, column `{target.name}`: expected a class in some row, found none; add the classes")
    return frame, target, _index_classes(target, classes, table)


def _index_classes(target: pl.Series, classes: pl.Series, table: Table) -> pl.Series:
    """Each row's place in `classes`; null for rows without a target."""
    y = target.replace_strict(classes, pl.int_range(len(classes), eager=True), default=None, return_dtype=pl.Int64)
    unknown = (y.is_null() & target.is_not_null()).arg_true()
    if len(unknown):
        raise DataError(
            f"{table.locate(unknown[0])}, column `{target.name}`: expected a class that data.source has too,"
            f" {list_names(map(str, classes))}, found {target[unknown[0]]!r}; leave the row out, or add such rows to data.source"
        )
    return y


def _split(
    settings: DataSettings, seed: int, table: Table, frame: pl.DataFrame, y: pl.Series, classes: Sequence[Any], has_test: bool
) -> dict[str, Rows]:
    """Row numbers of `table` in each split; rows without a target are in none."""
    val_fraction, test_fraction = (
        DEFAULT_FRACTION if share is None else share for share in (settings.val_fraction, settings.test_fraction)
    )
    if has_test:
        test_fraction = 0
    if table.is_raw and settings.val_fraction is None:
        val_fraction = 0
    if val_fraction + test_fraction >= 1:
        raise DataError(
            "data.val_fraction + data.test_fraction: expected less than 1, so that rows to train on are left,"
            f" found {val_fraction} + {test_fraction}; lower one"
        )
    is_labelled = y.is_not_null()
    rows = np.flatnonzero(is_labelled.to_numpy())
    labels = y.drop_nulls().to_numpy()
    where = f"{table.name}, column `{settings.target}`"
    if settings.split == "time":
        times = _read_times(settings, table, is_labelled)
        parts = split_by_time(times, labels, classes, val_fraction, test_fraction, where)
    else:
        parts = split_randomly(hash_rows(frame, seed)[rows], labels, classes, val_fraction, test_fraction, where)
    return {split: rows[positions] for split, positions in parts.items()}


def _read_times(settings: DataSettings, table: Table, is_labelled: pl.Series) -> pl.Series:
    """The column that orders the rows with a target."""
    name = settings.time_column or ""
    check_columns("data.time_column", [name], table.frame.columns, table.name)
    kind, times = find_kind(table.frame[name], settings.null_values, table.locate)
    if kind not in ("numeric", "datetime"):
        raise DataError(f"{table.name}, column `{name}`: expected date-times or numbers to order rows by, found text; name another")
    missing = (times.is_null() & is_labelled).arg_true()
    if len(missing):
        raise DataError(f"{table.locate(missing[0])}, column `{name}`: expected a time, found none; fill it in or drop the row")
    return times.filter(is_labelled)


def _freeze(
    columns: Sequence[AnyColumn],
    frame: pl.DataFrame,
    rows: Rows,
    y: pl.Series,
    hashes: Hashes,
    num_classes: int,
    table: Table,
    path: Path,
) -> list[int]:
    """Write the tensors of a split's rows to `path`, inputs a block of rows at a time; count each class.

    Source: the safetensors format, whose own writer takes whole tensors.
    """
    labels = y[rows].to_numpy()
    lengths, num_inputs = [len(rows)], len(name_inputs(columns))
    with path.open("wb") as file:
        file.write(_describe_arrays({"hashes": ("I64", lengths), "y": ("I64", lengths), "x": ("F32", [*lengths, num_inputs])}))
        file.write(hashes[rows].data)
        file.write(labels.data)
        for block in np.split(rows, range(ROWS_A_BLOCK, len(rows), ROWS_A_BLOCK)):
            file.write(apply_columns(columns, frame, partial(_locate_among, block, table), block).numpy().data)
    counts: list[int] = np.bincount(labels, minlength=num_classes).tolist()
    return counts


def _locate_among(rows: Rows, table: Table, index: int) -> str:
    return table.locate(int(rows[index]))


def _describe_arrays(arrays: Mapping[str, tuple[str, list[int]]]) -> bytes:
    """What a safetensors file begins with: type and shape by name, in the order in which the bytes follow."""
    described, end = {}, 0
    for name, (dtype, shape) in arrays.items():
        start, end = end, end + math.prod(shape) * int(dtype[1:]) // 8
        described[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _freeze_rows(rows: pl.DataFrame, path: Path) -> None:
    try:
        rows.write_parquet(path)
    except pl.exceptions.PolarsError as error:
        raise OSError(str(error)) from error


def _identify(
    frame: pl.DataFrame, columns: Sequence[AnyColumn], target: pl.Series, raw: pl.DataFrame, time_column: str | None
) -> Hashes:
    """A hash of each row's columns that are learned from, its class and its time."""
    known = frame.select(column.name for column in columns).with_columns(target)
    return hash_rows(known if time_column is None else known.with_columns(raw[time_column].alias(f"time {time_column}")))
