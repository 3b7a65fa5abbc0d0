"""Builds the data set of a run: reads, types, splits and fits, and freezes inputs and manifest in the store."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from pydantic import ConfigDict, Field

from refit.data.examples import Examples, SplitInfo
from refit.data.identities import Hashes, Identities, Rows, number_copies
from refit.data.signature import Kind, Target
from refit.data.splits import RareClassesError
from refit.errors import DataError
from refit.refs import DatasetRef, Ref
from refit.settings import DataSettings, SettingsTree
from refit.store.store import Store
from refit.tables.columns import check_columns, take_column
from refit.tables.copies import Copies, count_copies
from refit.tables.hashes import hash_rows
from refit.tables.preprocessing import AnyColumn, apply_columns, fit_columns, name_inputs, sign_columns
from refit.tables.profiles import Profile, profile_columns
from refit.tables.remarks import remark_on_columns
from refit.tables.schema import Reading, convert_column, convert_target, find_reading, read_marks, remark_on_target
from refit.tables.sides import TypedTable, choose_sides, read_groups
from refit.tables.sources.opening import open_source
from refit.tables.sources.table_source import Table
from refit.texts import list_names, show

MAX_CLASSES_SHOWN = 10
MAX_REMARKS_SHOWN = 30
MAX_RARE_SHARE = 0.1
"""Share of the rows with a class up to which those of rare classes are left out; beyond it, the target may be no class."""
MAX_BYTES_CHECKED = 20_000_000
"""Of files that are read twice, once to refuse them early."""
ROWS_A_BLOCK = 65_536
"""Rows that are turned into inputs at a time, so that those of a whole split need not be in memory."""
TEST_ROWS = "test rows"

Side = tuple[TypedTable, Identities, Rows]
"""A table, what tells its rows apart, and the numbers of those in a split."""


class Manifest(Examples):
    """The examples of a table, and what scoring needs to know of it: how rows become inputs.

    Rows are counted over `source` and `test_source` together, `source_rows` over `source` alone, with or without a target. The
    source digests cover the files' bytes, in order, and neither their names nor their times. `test_rows` are all cells of the test
    rows as they were read; `time_column` is that of a `time` split. The profiles are of the train rows, and cover the target too,
    as categories. `rows_left_out` are in no split though they have a target: by data.gap, data.window, or, as `units`, because
    they belong together with rows of a later split. `rare_classes` counts the rows of each class that has too few to be in every
    split; they are in none. `remarks` say what people should know of the table, a line each.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    columns: list[AnyColumn]
    profiles: list[Profile]
    time_column: str | None
    group_column: str | None
    test_rows: Ref | None
    rows: int
    rows_without_target: int
    rows_left_out: dict[str, int]
    source_rows: int
    test_copies: Copies | None
    dropped_columns: dict[str, str]
    remarks: list[str] = Field(default_factory=list)
    rare_classes: dict[str, int] = Field(default_factory=dict)
    source_digest: str
    test_source_digest: str | None

    @property
    def target(self) -> str:
        """The column that is predicted."""
        return self.signature.target.name

    @property
    def classes(self) -> list[bool | int | str]:
        """Its classes."""
        return self.signature.target.classes

    def describe(self) -> list[str]:
        """Lines for people: rows, columns by kind, classes, and what was dropped."""
        kinds = [column.kind for column in self.columns]
        columns = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
        splits = ", ".join(f"{info.rows} {split}" for split, info in self.splits.items())
        totals = [sum(counts) for counts in zip(*(info.class_counts for info in self.splits.values()), strict=True)]
        largest = sorted(zip(self.classes, totals, strict=True), key=lambda pair: -pair[1])
        classes = ", ".join(f"{show(label)} ({total})" for label, total in largest[:MAX_CLASSES_SHOWN])
        more = f" and {len(largest) - MAX_CLASSES_SHOWN} more" if len(largest) > MAX_CLASSES_SHOWN else ""
        lines = [
            f"rows: {self.rows} ({splits})",
            f"columns: {columns}, as {self.signature.num_inputs} inputs",
            f"classes of {show(self.target)}: {classes}{more}",
        ]
        if self.rows_without_target:
            lines.append(
                f"dropped: {self.rows_without_target} rows without a value of {show(self.target)}; write a name there if an empty"
                " cell is a class"
            )
        together = "features are those" if self.group_column is None else f"{show(self.group_column)} is that"
        reasons = {
            "gap": "in the gaps before validation and test",
            "window": "older than the window",
            "units": f"whose {together} of a row in a later split",
        }
        lines += [f"left out: {number} rows {reasons[name]}" for name, number in self.rows_left_out.items()]
        if self.test_copies is not None:
            lines.append(f"copies: {self._count_copies(self.test_copies)}")
        lines += [f"dropped: column {show(name)}, {reason}" for name, reason in self.dropped_columns.items()]
        lines += self.remarks[:MAX_REMARKS_SHOWN]
        if len(self.remarks) > MAX_REMARKS_SHOWN:
            lines.append(f"{len(self.remarks) - MAX_REMARKS_SHOWN} more such lines are in the version's manifest.json")
        return lines

    def list_warnings(self) -> list[str]:
        """Say what a person should mend."""
        return [*filter(None, [self.tell_rare_classes()]), *self._warn_of_copies()]

    def tell_rare_classes(self) -> str | None:
        """Say which classes the model does not know, as they have too few rows."""
        if not self.rare_classes:
            return None
        named = ", ".join(f"{show(label)} ({number})" for label, number in [*self.rare_classes.items()][:MAX_CLASSES_SHOWN])
        more = f" and {len(self.rare_classes) - MAX_CLASSES_SHOWN} more" if len(self.rare_classes) > MAX_CLASSES_SHOWN else ""
        total = sum(self.rare_classes.values())
        return (
            f"left out: {total} row{'s' * (total != 1)} of classes of {show(self.target)} with too few to be in every split:"
            f" {named}{more}; add rows of them"
        )

    def _warn_of_copies(self) -> list[str]:
        if self.test_copies is None or not self.test_copies.is_more_than_chance:
            return []
        remedy = (
            'if rows are copies, set data.split_by = "features"; if a customer, patient or device has several rows, name its column'
            " in data.group_column"
        )
        if self.test_source_digest is not None:
            remedy = "take these rows out of data.source"
        return [
            f"expected test rows that are new to the model, found {self._count_copies(self.test_copies)}; the test score may be too"
            f" good: {remedy}"
        ]

    def _count_copies(self, copies: Copies) -> str:
        by_chance = f"by chance it would be about {copies.by_chance:.0f}"
        return f"{copies.rows} of {self.splits['test'].rows} test rows with the features of a train row ({by_chance})"


@dataclass(frozen=True)
class _Prepared:
    """A data set before it is frozen."""

    readings: dict[str, Reading]
    target: pl.Series
    """Of all rows of `source`, those of rare classes too."""
    classes: pl.Series
    source: TypedTable
    test: TypedTable | None
    parts: dict[str, Rows]
    """Row numbers of `source` in each split."""
    left_out: dict[str, int]
    rare: dict[str, int]
    columns: list[AnyColumn]

    @property
    def kinds(self) -> dict[str, Kind]:
        return {name: reading.kind for name, reading in self.readings.items()}


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
    prepared = _prepare(settings, seed)
    source, test, columns, train = prepared.source, prepared.test, prepared.columns, prepared.parts["train"]
    kinds: dict[str, Kind] = {**prepared.kinds, settings.target: "categorical"}
    profiles = profile_columns(source.frame.with_columns(source.target), kinds, train, source.groups)
    time_column = settings.time_column if settings.split == "time" else None
    identities = _identify(source, columns, time_column)
    sides = {split: (source, identities, rows) for split, rows in prepared.parts.items()}
    if test is not None:
        sides["test"] = test, _identify(test, columns, time_column), test.labelled
    with store.temporary_folder() as folder:
        counts = {split: _freeze(columns, *side, len(prepared.classes), folder / split) for split, side in sides.items()}
        if "test" in sides:
            typed, _, rows = sides["test"]
            _freeze_rows(typed.table.frame[rows], folder / TEST_ROWS)
        sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
        digests = {name: store.put_file(folder / name) for name in sizes}

    fitted = {column.name for column in columns}
    manifest = Manifest(
        signature=sign_columns(columns, Target(name=settings.target, classes=prepared.classes.to_list())),
        columns=columns,
        profiles=profiles,
        time_column=time_column,
        group_column=settings.group_column,
        splits={
            split: SplitInfo(rows=sum(counts[split]), class_counts=counts[split], digest=digests[split], size=sizes[split])
            for split in counts
        },
        test_rows=Ref(kind="rows", digest=digests[TEST_ROWS], size=sizes[TEST_ROWS]) if TEST_ROWS in digests else None,
        rows=sum(map(sum, counts.values())),
        rows_without_target=source.y.null_count() + (test.y.null_count() if test else 0) - sum(prepared.rare.values()),
        rows_left_out=prepared.left_out,
        source_rows=source.frame.height,
        test_copies=_count_copies(columns, sides["train"], sides["test"]) if "test" in sides else None,
        dropped_columns={name: "no value in the train rows" for name in prepared.readings if name not in fitted},
        remarks=_remark(settings, prepared),
        rare_classes=prepared.rare,
        source_digest=source.table.digest,
        test_source_digest=test.table.digest if test else None,
    )
    data = manifest.model_dump_json().encode()
    return Ref(kind="dataset", digest=store.put(data), size=len(data))


def build_snapshot(
    settings: SettingsTree,
    source_digests: Sequence[str | None],
    store: Store,
    report: Callable[[str], object],
    warn: Callable[[str], object],
) -> DatasetRef:
    """Build the data set of a run, if its sources still have the digests of the recipe, and tell what it holds."""
    ref = build_dataset(settings.data, settings.seed, store)
    manifest = load_manifest(ref, store)
    check_sources(manifest, source_digests)
    for line in manifest.describe():
        report(line)
    for line in manifest.list_warnings():
        warn(line)
    splits = {split: info.ref for split, info in manifest.splits.items()}
    return DatasetRef(**ref.model_dump(), splits=splits, test_rows=manifest.test_rows)


def check_data(settings: DataSettings, seed: int, max_bytes: int = MAX_BYTES_CHECKED) -> None:
    """Raise DataError for what `build_dataset` would refuse, as far as that takes a moment: of large files, the header is read."""
    num_bytes = 0
    for source in filter(None, (settings.source, settings.test_source)):
        size = open_source(source).count_bytes()
        if size is None:
            return
        num_bytes += size
    if num_bytes <= max_bytes:
        _prepare(settings, seed)
        return
    names = open_source(settings.source).names()
    for setting in ("target", "features", "categorical", "group_column", "time_column"):
        value = getattr(settings, setting)
        check_columns(f"data.{setting}", [value] if isinstance(value, str) else value or [], names, settings.source)


def _prepare(settings: DataSettings, seed: int) -> _Prepared:
    """All that can be refused of a data set, but for numbers outside the train rows that are too large."""
    table = open_source(settings.source).read()
    test_table = _read_test_table(settings, table)
    readings, frame = _type_features(settings, table)
    kind, target = _type_target(settings, table)
    classes, source, test, parts, left_out, rare = _divide(settings, seed, table, test_table, readings, frame, kind, target)
    kinds = {name: reading.kind for name, reading in readings.items()}
    formats = {name: reading.format for name, reading in readings.items() if reading.format is not None}
    try:
        columns = fit_columns(frame, kinds, settings.null_values, table.is_raw, parts["train"], formats)
    except DataError as error:
        raise DataError(f"{table.name}, {error}") from error
    if not columns:
        raise DataError(f"{table.name}: expected a column to learn from, found no value in any for train rows; check data.features")
    return _Prepared(readings, target, classes, source, test, parts, left_out, rare, columns)


def _divide(
    settings: DataSettings,
    seed: int,
    table: Table,
    test_table: Table | None,
    readings: dict[str, Reading],
    frame: pl.DataFrame,
    kind: Kind,
    target: pl.Series,
) -> tuple[pl.Series, TypedTable, TypedTable | None, dict[str, Rows], dict[str, int], dict[str, int]]:
    """Divide the rows, without those of a few classes that are too rare for it; all of `_Prepared` that depends on this."""
    groups, known = read_groups(settings, table, target), target.drop_nulls()
    rare = known.clear()
    while True:
        classes = known.filter(~known.is_in(rare.implode())).unique().sort()
        if len(classes) < 2:
            found = f"only {list_names(map(str, classes))}" if len(classes) else "none"
            raise DataError(
                f"{table.name}, column `{show(target.name)}`: expected two classes or more, found {found};"
                " add rows of other classes, or name another column in data.target",
                *remark_on_target(take_column(table.frame, settings.target), target),
            )
        kept = _leave_out(target, rare)
        source = TypedTable(table, frame, kept.alias(settings.target), _index_classes(kept, classes, table), groups)
        test = None if test_table is None else _convert_test_rows(settings, test_table, readings, kind, classes, rare)
        counts = dict(known.filter(known.is_in(rare.implode())).cast(pl.String).value_counts(sort=True).rows())
        try:
            return classes, source, test, *choose_sides(settings, seed, source, test, classes.to_list()), counts
        except RareClassesError as error:
            rare = pl.concat([rare, classes.gather(error.places)])
            num_rare = int(known.is_in(rare.implode()).sum())
            if len(error.places) > len(classes) - 2 or num_rare > MAX_RARE_SHARE * len(known):
                raise


def _leave_out(target: pl.Series, rare: pl.Series) -> pl.Series:
    """The classes of rows, null for those of rare ones."""
    if not len(rare):
        return target
    return target.set(target.cast(rare.dtype, strict=False).is_in(rare.implode()).fill_null(False), None)


def _remark(settings: DataSettings, prepared: _Prepared) -> list[str]:
    """What people should know of the table, a line each."""
    source = prepared.source
    used = {*prepared.readings, settings.target, settings.group_column, settings.time_column}
    return [
        *source.table.remarks,
        *(
            f"left out: column `{show(name)}`, as a folder above {source.table.name} says the same of all rows; name it in"
            " data.features to learn from it"
            for name in source.table.outer
            if name not in used
        ),
        *remark_on_target(take_column(source.table.frame, settings.target), prepared.target),
        *remark_on_columns(
            prepared.columns, prepared.readings, source.frame, source.table.frame, source.y, prepared.parts["train"]
        ),
    ]


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


def load_test_rows(manifest: Manifest, store: Store) -> pl.DataFrame:
    """Load the test rows with all their cells as they were read, in the order of `load_split`; raises as `load_split` does."""
    if manifest.test_rows is None:
        raise manifest.lack("test")
    with store.local_file(manifest.test_rows.digest) as path:
        return pl.read_parquet(path, glob=False, hive_partitioning=False)


def convert_rows(manifest: Manifest, rows: pl.DataFrame) -> tuple[pl.Series, Hashes, pl.DataFrame]:
    """Convert raw rows as those of this data set were.

    Returns:
        The true classes as text, what identifies each row in the eyes of this data set, and the columns that it is told by: those
        that are learned from, the class, the time. Of each N.

    Raises:
        DataError: A column is missing, or a value cannot be converted.
    """
    names = [*(column.name for column in manifest.columns), manifest.target, manifest.time_column]
    check_columns("data.source", filter(None, names), rows.columns, "the table")
    frame = pl.DataFrame(
        {
            column.name: convert_column(take_column(rows, column.name), column.kind, column.null_values, _count_rows, column.format)
            for column in manifest.columns
        }
    )
    kinds: dict[type, Kind] = {bool: "boolean", int: "numeric", str: "categorical"}
    null_values = manifest.columns[0].null_values
    _, target = convert_target(take_column(rows, manifest.target), kinds[type(manifest.classes[0])], null_values, _count_rows)
    known = _gather(frame, manifest.columns, target.alias(manifest.target), rows, manifest.time_column)
    return target.cast(pl.String), hash_rows(known), known


def _count_rows(index: int) -> str:
    return f"row {index + 1} of the test rows"


def _read_test_table(settings: DataSettings, table: Table) -> Table | None:
    """The test rows that come on their own, if any."""
    test = table.test
    if settings.test_source is not None:
        if test is not None:
            raise DataError(
                f"data.test_source: expected none, as {table.name} brings test rows, found {settings.test_source}; drop it"
            )
        test = open_source(settings.test_source).read()
        if test.digest == table.digest:
            raise DataError(
                f"{test.name}: expected test rows of their own, found the same bytes as in {table.name}; name other files"
            )
    if test is not None and settings.test:
        raise DataError(f"data.test: expected none, as test rows come on their own, found {settings.test}; drop it")
    return test


def _type_features(settings: DataSettings, table: Table) -> tuple[dict[str, Reading], pl.DataFrame]:
    """How each column to learn from is read, and the columns, converted where they are no numbers already."""
    readings: dict[str, Reading] = {}
    converted, has_marks = [], len(read_marks(tuple(settings.null_values), "numeric")) > 0
    for name in _choose_features(settings, table):
        values = take_column(table.frame, name)
        if name in settings.categorical:
            readings[name] = Reading("categorical")
            converted.append(convert_column(values, "categorical", settings.null_values, table.locate))
        else:
            readings[name], typed = find_reading(values, settings.null_values, table.locate)
            # Numbers stay as they are: a second copy would double what a table of numbers takes.
            is_kept = readings[name].kind == "numeric" and values.dtype.is_numeric() and not has_marks
            converted.append(values if is_kept else typed)
    return readings, pl.DataFrame(dict(zip(readings, converted, strict=True)))


def _choose_features(settings: DataSettings, table: Table) -> list[str]:
    """The columns to learn from."""
    present = table.frame.columns
    features = settings.features
    check_columns("data.target", [settings.target], present, table.name)
    check_columns("data.features", features or [], present, table.name)
    check_columns("data.categorical", settings.categorical, present, table.name)
    if features is None:
        time_column = settings.time_column if settings.split == "time" else None
        apart = {settings.target, settings.group_column, time_column, *table.outer}
        features = [name for name in present if name not in apart]
    if not features:
        raise DataError(f"{table.name}: expected a column to learn from, found {list_names(present)}; name some in data.features")
    if settings.target in features:
        raise DataError(f"data.features: expected columns to learn from, found the target `{show(settings.target)}`; take it out")
    if settings.group_column in [*features, settings.target]:
        raise DataError(
            f"data.group_column: expected a column that is neither learned from nor the target, found `{settings.group_column}`;"
            " take it out of data.features, or name another"
        )
    return list(dict.fromkeys(features))


def _type_target(settings: DataSettings, table: Table) -> tuple[Kind, pl.Series]:
    kind: Kind | None = "categorical" if settings.target in settings.categorical else None
    return convert_target(take_column(table.frame, settings.target), kind, settings.null_values, table.locate)


def _convert_test_rows(
    settings: DataSettings, table: Table, readings: Mapping[str, Reading], target_kind: Kind, classes: pl.Series, rare: pl.Series
) -> TypedTable:
    """The rows of `test_source`, converted as those of `source` were."""
    time_column = settings.time_column if settings.split == "time" else None
    needed = filter(None, (settings.target, time_column, settings.group_column))
    present = set(table.frame.columns)
    missing = [name for name in (*readings, *needed) if name not in present]
    if missing:
        choice = ", or leave it out with data.features" if readings.keys() >= {*missing} else ""
        raise DataError(
            f"data.test_source: expected column {list_names(missing)} in {table.name} as in data.source,"
            f" found {list_names(table.frame.columns)}; add what is missing{choice}"
        )
    frame = pl.DataFrame(
        {
            name: convert_column(take_column(table.frame, name), reading.kind, settings.null_values, table.locate, reading.format)
            for name, reading in readings.items()
        }
    )
    _, target = convert_target(take_column(table.frame, settings.target), target_kind, settings.null_values, table.locate)
    if target.null_count() == len(target):
        raise DataError(f"{table.name}, column `{show(target.name)}`: expected a class in some row, found none; add the classes")
    groups, target = read_groups(settings, table, target), _leave_out(target, rare)
    return TypedTable(table, frame, target.alias(settings.target), _index_classes(target, classes, table), groups)


def _index_classes(target: pl.Series, classes: pl.Series, table: Table) -> pl.Series:
    """Each row's place in `classes`; null for rows without a target."""
    known = target.cast(classes.dtype, strict=False)
    y = known.replace_strict(classes, pl.int_range(len(classes), eager=True), default=None, return_dtype=pl.Int64)
    unknown = (y.is_null() & target.is_not_null()).arg_true()
    if len(unknown):
        row = int(unknown[0])
        raise DataError(
            f"{table.locate(row)}, column `{show(target.name)}`: expected a class that data.source has too,"
            f" {list_names(map(str, classes))}, found {show(target[row])}; leave the row out, or add such rows to data.source"
        )
    return y


def _freeze(
    columns: Sequence[AnyColumn], typed: TypedTable, identities: Identities, rows: Rows, num_classes: int, path: Path
) -> list[int]:
    """Write the tensors of a split's rows to `path`, inputs a block of rows at a time; count each class.

    Source: the safetensors format, whose own writer takes whole tensors.
    """
    labels = typed.y[rows].to_numpy()
    arrays = {name: array[rows] for name, array in sorted(vars(identities).items()) if array is not None} | {"y": labels}
    described = {name: ("I64", [len(rows)]) for name in arrays} | {"x": ("F32", [len(rows), len(name_inputs(columns))])}
    with path.open("wb") as file:
        file.write(_describe_arrays(described))
        for array in arrays.values():
            file.write(array.data)
        for block in np.split(rows, range(ROWS_A_BLOCK, len(rows), ROWS_A_BLOCK)):
            file.write(apply_columns(columns, typed.frame, partial(_locate_among, block, typed.table), block).numpy().data)
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


def _gather(
    frame: pl.DataFrame, columns: Sequence[AnyColumn], target: pl.Series, raw: pl.DataFrame, time_column: str | None
) -> pl.DataFrame:
    """What tells rows apart: the columns that are learned from, the class, and the time of a `time` split."""
    known = frame[[column.name for column in columns]].with_columns(target)
    return known if time_column is None else known.with_columns(take_column(raw, time_column).alias(f"time {time_column}"))


def _identify(typed: TypedTable, columns: Sequence[AnyColumn], time_column: str | None) -> Identities:
    hashes = hash_rows(_gather(typed.frame, columns, typed.target, typed.table.frame, time_column))
    numbers, labelled = np.zeros(len(hashes), np.int64), typed.labelled
    numbers[labelled] = number_copies(hashes[labelled])
    return Identities(hashes, numbers, typed.groups)


def _count_copies(columns: Sequence[AnyColumn], train: Side, test: Side) -> Copies:
    """Count the test rows whose features are those of a train row."""
    (source, _, train_rows), (typed, _, test_rows) = train, test
    features = source.frame[[column.name for column in columns]]
    if typed is not source:
        test_rows = test_rows + features.height
        features = pl.concat([features, typed.frame[features.columns]], how="vertical_relaxed")
    return count_copies(features, train_rows, test_rows)
