"""Says of a table what training makes of it, column by column, from a sample of its rows if it is large."""

from collections.abc import Sequence
from typing import Any

import polars as pl
from pydantic import BaseModel, ConfigDict

from refit.errors import DataError
from refit.settings import DataSettings
from refit.tables.columns import take_column
from refit.tables.draft import Draft, draft_table, remark
from refit.tables.formats import ClockFormat
from refit.tables.preprocessing import AnyColumn, CategoricalColumn, TextColumn, fit_columns, name_inputs
from refit.tables.schema import KINDS, Reading
from refit.tables.sources.dialects import Dialect
from refit.tables.sources.opening import open_source
from refit.tables.sources.table_source import Table
from refit.tables.targets import tell_rare_classes, tell_rows_without_target
from refit.tables.typed_columns import ADVICE, Features, merge_remedies, type_features
from refit.texts import show

MAX_BYTES = 12_000_000
MAX_BYTES_READ = 160_000_000
NUM_EXAMPLES = 3
NUM_LOOKED_AT_FIRST, NUM_LOOKED_AT = 20, 1000
MAX_CLASSES = 20
"""A column with more different values is not proposed as the target, unless it has numbers and a usual name."""
TARGET_NAMES = ("target", "label", "class", "y", "outcome", "churn")


class ColumnOverview(BaseModel):
    """What is made of a column.

    Args:
        name: Of the column.
        kind: `number`, `date`, `time`, `boolean`, `category`, `text`, `constant`, `target`, or why it is left out.
        how: How its cells are read, where that does not go without saying.
        missing: Rows without a value.
        distinct: Different values.
        categories: Those with an input of their own; None for other kinds.
        inputs: That it becomes.
        examples: The first different cells.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: str
    how: str = ""
    missing: int
    distinct: int
    categories: int | None = None
    inputs: int = 0
    examples: list[str]


class Overview(BaseModel):
    """What is made of a table.

    Args:
        source: As it was asked for.
        rows: In the table, or read of it before there were too many.
        rows_looked_at: On which all else rests.
        dialect: How its files are written, if they are CSV.
        columns: In the order of the table.
        classes: Rows of each class, the most frequent first; empty without a target.
        remarks: What people should know, a line each.
        faults: What training would refuse, a line each.
        remedies: Settings of `data` with which it would not; two if a column may be read in two ways.
        targets: Columns that may be the target, the likeliest first, if none is known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    rows: int
    rows_looked_at: int
    dialect: Dialect | None
    columns: list[ColumnOverview]
    classes: dict[str, int]
    remarks: list[str]
    faults: list[str]
    remedies: list[dict[str, Any]]
    targets: list[str]

    @property
    def num_inputs(self) -> int:
        """That all columns become."""
        return sum(column.inputs for column in self.columns)


def look_at_table(settings: DataSettings, seed: int, is_target_given: bool) -> Overview:
    """Look at a table as training would.

    Args:
        settings: Those of a training.
        seed: Decides which rows are train rows.
        is_target_given: Whether the target must be there; otherwise, without a column of that name, there is none.

    Raises:
        DataError: The table cannot be read at all.
    """
    table = open_source(settings.source, settings).sample(MAX_BYTES, MAX_BYTES_READ)
    has_target = settings.target in table.frame.columns
    faults, remedies, draft = list[str](), list[dict[str, Any]](), None
    features = type_features(settings, table, has_target=is_target_given or has_target)
    if has_target:
        try:
            draft = draft_table(settings, seed, table, None, features)
        except DataError as fault:
            remedies, faults = [*map(dict, fault.remedies)], [line for line in fault.args if not line.startswith(ADVICE)]
    columns = draft.columns if draft is not None else _fit_all(settings, table, features)
    if not has_target:
        faults = [line for fault in features.faults for line in fault.args]
        remedies = merge_remedies(settings, features.faults)
    if draft is None:
        told = [(name, reading.remark) for name, reading in features.readings.items()]
        remarks = [*table.remarks, *(f"column `{show(name)}`: {text}" for name, text in told if text)]
    else:
        left_out = (
            tell_rows_without_target(settings.target, draft.target.null_count(), draft.target_reading.is_number),
            tell_rare_classes(settings.target, draft.rare, draft.find_rare_places()),
        )
        remarks = [*filter(None, left_out), *remark(settings, draft)]
    overview = _describe_all(table, settings, features, columns)
    return Overview(
        source=settings.source,
        rows=table.num_seen or table.frame.height,
        rows_looked_at=table.frame.height,
        dialect=table.dialect,
        columns=overview,
        classes=_count_classes(draft),
        remarks=remarks,
        faults=faults,
        remedies=remedies,
        targets=[] if has_target else _propose_targets(overview),
    )


def _fit_all(settings: DataSettings, table: Table, features: Features) -> list[AnyColumn]:
    """Fit the columns that can be read to all rows, as the train rows are not known."""
    kinds = {name: reading.kind for name, reading in features.readings.items()}
    formats = {name: reading.format for name, reading in features.readings.items() if reading.format is not None}
    return fit_columns(features.frame, kinds, settings.null_values, table.is_raw, None, formats)


def _describe_all(table: Table, settings: DataSettings, features: Features, columns: Sequence[AnyColumn]) -> list[ColumnOverview]:
    fitted = {column.name: column for column in columns}
    numbers = features.frame.select(pl.all().drop_nulls().n_unique()).row(0) if features.readings else ()
    distinct = dict(zip(features.readings, numbers, strict=True))
    described = []
    for name in table.frame.columns:
        reading, column, raw = features.readings.get(name), fitted.get(name), take_column(table.frame, name)
        typed = raw if reading is None else take_column(features.frame, name)
        if name not in distinct:
            distinct[name] = 0 if raw.dtype.is_nested() else raw.drop_nulls().n_unique()
        kind, how = _name_kind(name, settings, features, table, reading, column)
        examples = _find_examples(raw, typed)
        described.append(
            ColumnOverview(
                name=name,
                kind=kind,
                how=how,
                missing=typed.null_count(),
                distinct=distinct[name],
                categories=len(column.categories) if isinstance(column, CategoricalColumn) else None,
                inputs=0 if column is None else len(name_inputs([column])),
                examples=[show(cell) for cell in examples],
            )
        )
    return described


def _find_examples(raw: pl.Series, typed: pl.Series) -> list[Any]:
    """The first different cells that have a value; among the very first, as a table may have thousands of columns."""
    first = zip(raw.head(NUM_LOOKED_AT_FIRST).to_list(), typed.head(NUM_LOOKED_AT_FIRST).to_list(), strict=True)
    examples = [*dict.fromkeys(cell for cell, value in first if value is not None and not isinstance(cell, list | dict))]
    if len(examples) < NUM_EXAMPLES:
        examples = raw.filter(typed.is_not_null()).head(NUM_LOOKED_AT).unique(maintain_order=True).to_list()
    return examples[:NUM_EXAMPLES]


def _name_kind(
    name: str, settings: DataSettings, features: Features, table: Table, reading: Reading | None, column: AnyColumn | None
) -> tuple[str, str]:
    """What a column is, and how it is read, or why it is left out."""
    apart = {settings.target: "target", settings.group_column: "group"}
    if settings.split == "time":
        apart[settings.time_column] = "time of the split"
    if name in apart:
        return apart[name], ""
    if name in features.left_out:
        kind, _, how = features.left_out[name].replace("row numbers,", "row number:").replace("ids:", "id:").partition(": ")
        return kind, how
    if name in settings.exclude or name in table.outer or (reading is None and settings.features is not None):
        return "left out", ""
    if reading is None:
        return "unreadable", ""
    if column is None:
        return "empty", "no value in the train rows"
    how = reading.format.describe() if reading.format is not None else ""
    if column.is_constant:
        return "constant", how
    if isinstance(column, CategoricalColumn) and not column.categories:
        return "category", "all different: nothing to learn"
    if isinstance(column, TextColumn):
        how = f"for its words: {len(column.ngrams):,} words, pairs and pieces of words"
    return "time" if isinstance(reading.format, ClockFormat) else KINDS[reading.kind], how


def _count_classes(draft: Draft | None) -> dict[str, int]:
    if draft is None or draft.target_reading.is_number:
        return {}
    counts = draft.target.drop_nulls().cast(pl.String).alias("class").value_counts(name="rows")
    return dict(counts.sort("rows", "class", descending=[True, False]).rows())


def _propose_targets(columns: Sequence[ColumnOverview]) -> list[str]:
    """Columns of few different values, or of numbers and a usual name: such names first, then from the last to the first."""
    few = [column for column in reversed(columns) if column.kind in ("category", "boolean", "number") and _may_be_target(column)]
    names = [column.name for column in few]
    return sorted(names, key=lambda name: name.lower() not in TARGET_NAMES)


def _may_be_target(column: ColumnOverview) -> bool:
    is_named_so = column.kind == "number" and column.name.lower() in TARGET_NAMES
    return column.distinct >= 2 and (column.distinct <= MAX_CLASSES or is_named_so)
