"""Reads, types, divides and fits the rows that the settings name: all of a data set but freezing it."""

from dataclasses import dataclass

import polars as pl

from refit.data.identities import Rows
from refit.data.signature import Kind, Target
from refit.data.splits import RareClassesError
from refit.errors import DataError
from refit.settings import DataSettings
from refit.tables.columns import check_columns, take_column
from refit.tables.preprocessing import AnyColumn, fit_columns
from refit.tables.remarks import remark_on_columns
from refit.tables.schema import Reading
from refit.tables.sources.opening import open_source
from refit.tables.sources.table_source import Table
from refit.tables.table_splits import TypedTable, choose_sides, read_groups
from refit.tables.targets import remark_on_target, sign_numbers
from refit.tables.typed_columns import Features, raise_faults, type_features
from refit.tables.typed_target import TargetReading, index_classes, leave_out, type_target, type_test_rows
from refit.texts import list_names, show

MAX_BYTES_CHECKED = 20_000_000
"""Files up to this size are read twice, once to refuse them early."""
MAX_PLACES = 10
MAX_RARE_SHARE = 0.1
"""Rows of rare classes are left out up to this share of the rows with a class; beyond it, the target may not be a class at all."""


@dataclass(frozen=True)
class Draft:
    """A data set before it is frozen."""

    readings: dict[str, Reading]
    target: pl.Series
    """Of all rows of `source`, including those of rare classes."""
    target_reading: TargetReading
    signed: Target
    """What is predicted."""
    source: TypedTable
    test: TypedTable | None
    parts: dict[str, Rows]
    """Row numbers of `source` in each split."""
    left_out: dict[str, int]
    rare: dict[str, int]
    columns: list[AnyColumn]
    labels: dict[str, str]
    """Columns that only tell rows apart, and why each is taken for such."""

    @property
    def kinds(self) -> dict[str, Kind]:
        """What each column to learn from holds."""
        return {name: reading.kind for name, reading in self.readings.items()}

    def find_rare_places(self) -> dict[str, str]:
        """Where the first row of each rare class is, for a few of them."""
        labels = self.target.cast(pl.String)
        first = {label: (labels == label).arg_max() for label in [*self.rare][:MAX_PLACES]}
        return {label: self.source.table.locate(row) for label, row in first.items() if row is not None}


def draft_dataset(settings: DataSettings, seed: int) -> Draft:
    """Draft the data set that the settings describe.

    Raises:
        DataError: The data set is not what training needs; only numbers outside the train rows that are too large pass.
    """
    table = open_source(settings.source, settings).read()
    return draft_table(settings, seed, table, _read_test_table(settings, table), type_features(settings, table))


def draft_table(settings: DataSettings, seed: int, table: Table, test_table: Table | None, features: Features) -> Draft:
    """Draft the data set of tables that are read and whose features are typed; raises as `draft_dataset` does."""
    readings, frame, faults = features.readings, features.frame, [*features.faults]
    try:
        reading, target = type_target(settings, table, readings)
        if faults and readings:
            _divide(settings, seed, table, None, readings, frame, reading, target)  # what is wrong with it is said, too
    except DataError as fault:
        faults.append(fault)
    raise_faults(settings, faults)
    classes, source, test, parts, left_out, rare = _divide(settings, seed, table, test_table, readings, frame, reading, target)
    signed = (
        sign_numbers(source.target, parts["train"], table.name)
        if classes is None
        else Target(name=settings.target, classes=classes.to_list())
    )
    kinds = {name: reading.kind for name, reading in readings.items()}
    formats = {name: reading.format for name, reading in readings.items() if reading.format is not None}
    try:
        columns = fit_columns(
            frame, kinds, settings.null_values, table.is_raw, parts["train"], formats, max_one_hot=settings.max_one_hot
        )
    except DataError as error:
        raise DataError(f"{table.name}, {error}") from error
    if not columns:
        raise DataError(f"{table.name}: expected a column with values in the train rows, found none; check data.features")
    return Draft(readings, target, reading, signed, source, test, parts, left_out, rare, columns, features.left_out)


def check_data(settings: DataSettings, seed: int, max_bytes: int = MAX_BYTES_CHECKED) -> None:
    """Raise DataError early for what `build_dataset` would refuse; of large files, only the names of columns are checked."""
    num_bytes = 0
    for source in filter(None, (settings.source, settings.test_source)):
        size = open_source(source, settings).count_bytes()
        if size is None:
            return
        num_bytes += size
    if num_bytes <= max_bytes:
        draft_dataset(settings, seed)
        return
    names = open_source(settings.source, settings).names()
    for setting in ("target", "features", "exclude", "kinds", "group_column", "time_column"):
        value = getattr(settings, setting)
        check_columns(f"data.{setting}", [value] if isinstance(value, str) else value or [], names, settings.source)


def remark(settings: DataSettings, draft: Draft) -> list[str]:
    """List what people should know about the table, a line each."""
    source, told = draft.source, draft.target_reading.remark
    y = source.target if draft.target_reading.is_number else source.y
    used = {*draft.readings, settings.target, settings.group_column, settings.time_column}
    return [
        *source.table.remarks,
        *(
            f"left out: column `{show(name)}`, which a folder above {source.table.name} names and which has one value in all rows;"
            " name it in data.features to learn from it"
            for name in source.table.outer
            if name not in used
        ),
        *([] if told is None else [f"column `{show(settings.target)}`: {told}"]),
        *remark_on_target(take_column(source.table.frame, settings.target), draft.target),
        *remark_on_columns(draft.columns, draft.readings, source.frame, source.table.frame, y, draft.parts["train"]),
    ]


def _divide(
    settings: DataSettings,
    seed: int,
    table: Table,
    test_table: Table | None,
    readings: dict[str, Reading],
    frame: pl.DataFrame,
    reading: TargetReading,
    target: pl.Series,
) -> tuple[pl.Series | None, TypedTable, TypedTable | None, dict[str, Rows], dict[str, int], dict[str, int]]:
    """Divide the rows, leaving out those of a few too rare classes; return the classes and what else depends on this."""
    groups, known = read_groups(settings, table, target), target.drop_nulls()
    rare = known.clear()
    if reading.is_number:
        source = TypedTable(table, frame, target.alias(settings.target), index_classes(target, None, table), groups)
        test = None if test_table is None else type_test_rows(settings, test_table, readings, reading, None, rare)
        return None, source, test, *_choose_sides_of_numbers(settings, seed, source, test), {}
    while True:
        classes = known.filter(~known.is_in(rare.implode())).unique().sort()
        if len(classes) < 2:
            found = f"only {list_names(map(str, classes))}" if len(classes) else "none"
            raise DataError(
                f"{table.name}, column `{show(target.name)}`: expected two classes or more, found {found};"
                " add rows of other classes, or name another column in data.target",
                *remark_on_target(take_column(table.frame, settings.target), target),
            )
        kept = leave_out(target, rare)
        source = TypedTable(table, frame, kept.alias(settings.target), index_classes(kept, classes, table), groups)
        test = None if test_table is None else type_test_rows(settings, test_table, readings, reading, classes, rare)
        counts = dict(known.filter(known.is_in(rare.implode())).cast(pl.String).value_counts(sort=True).rows())
        try:
            return classes, source, test, *choose_sides(settings, seed, source, test, classes.to_list()), counts
        except RareClassesError as error:
            rare = pl.concat([rare, classes.gather(error.places)])
            num_rare = int(known.is_in(rare.implode()).sum())
            if len(error.places) > len(classes) - 2 or num_rare > MAX_RARE_SHARE * len(known):
                raise


def _choose_sides_of_numbers(
    settings: DataSettings, seed: int, source: TypedTable, test: TypedTable | None
) -> tuple[dict[str, Rows], dict[str, int]]:
    """Choose the rows of each split as if all were of one class."""
    try:
        return choose_sides(settings, seed, source, test, ["number"])
    except RareClassesError as error:
        raise DataError(
            f"{source.table.name}, column `{show(settings.target)}`: expected rows enough to have some in every split, found"
            f" {len(source.labelled)} with a number; add rows, or lower data.val and data.test"
        ) from error


def _read_test_table(settings: DataSettings, table: Table) -> Table | None:
    """Read the test rows that are given separately, if any."""
    test = table.test
    if settings.test_source is not None:
        if test is not None:
            raise DataError(
                f"data.test_source: expected none, as {table.name} brings its own test rows, found {settings.test_source}; drop it"
            )
        test = open_source(settings.test_source, settings).read()
        if test.digest == table.digest:
            raise DataError(
                f"{test.name}: expected other rows than those of data.source, found the same bytes as in {table.name};"
                " name other files"
            )
    if test is not None and settings.test:
        raise DataError(f"data.test: expected none, as the test rows are given separately, found {settings.test}; drop it")
    return test
