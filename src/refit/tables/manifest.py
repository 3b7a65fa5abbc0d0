"""The record of a data set: what it holds, how its rows become inputs, and what people should know about it."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import polars as pl
from pydantic import ConfigDict, Field

from refit.data.examples import MAX_CLASSES_SHOWN, Examples
from refit.errors import DataError, SettingsError
from refit.refs import Ref
from refit.store.store import Store
from refit.tables.copies import Copies
from refit.tables.formats import ClockFormat, Format
from refit.tables.preprocessing import AnyColumn, CategoricalColumn, name_inputs
from refit.tables.schema import KINDS
from refit.tables.sources.dialects import Dialect
from refit.tables.targets import tell_rare_classes, tell_rows_without_target
from refit.texts import count, list_names, show

MAX_COLUMNS_SHOWN = 30


class Manifest(Examples):
    """The examples of a table, and how its rows become inputs, which scoring needs to know.

    Rows are counted over `source` and `test_source` together, but `source_rows` over `source` alone, with or without a target.
    The source digests cover the files' bytes in order, but not their names or times. `test_rows` holds all cells of the test
    rows as they were read. `time_column` is the column of a `time` split. The profiles describe the train rows, and the target
    too, classes as categories. `target_format` says how numbers to predict are written. `rows_left_out` counts rows that have
    a target but are in no split: because of data.gap, of data.window, or, as `units`, because they belong together with rows of
    a later split. `rare_classes` counts the rows of each class that has too few rows to be in every split; they are in none;
    `rare_places` says where the first of them is. `remarks` say what people should know about the table, a line each. `dialect`
    says how CSV files of the source are written, without the encoding if they have several.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    maker: Literal["tables"] = "tables"
    columns: list[AnyColumn]
    time_column: str | None
    group_column: str | None
    target_format: Format | None = None
    test_rows: Ref | None
    rows: int
    rows_without_target: int
    rows_left_out: dict[str, int]
    source_rows: int
    test_copies: Copies | None
    dropped_columns: dict[str, str]
    rare_classes: dict[str, int] = Field(default_factory=dict)
    rare_places: dict[str, str] = Field(default_factory=dict)
    dialect: Dialect | None = None

    @property
    def target(self) -> str:
        """The column that is predicted."""
        return self.signature.target.name

    def summarize_inputs(self) -> str:
        """Count the columns by their kind."""
        kinds = [column.kind for column in self.columns]
        return ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)) + " columns"

    @property
    def refs(self) -> list[Ref]:
        """Everything in the store that belongs to the data set, besides this record."""
        return [*super().refs, *([] if self.test_rows is None else [self.test_rows])]

    @property
    def test_ref(self) -> Ref | None:
        """What identifies the test rows: all their cells."""
        return self.test_rows

    def describe(self) -> list[str]:
        """Lines for people: rows, columns by kind, classes, and what was dropped."""
        kinds = [column.kind for column in self.columns]
        named = {kind: list_names([column.name for column in self.columns if column.kind == kind]) for kind in dict.fromkeys(kinds)}
        columns = ", ".join(f"{kinds.count(kind)} {kind}{f' ({names})' if len(named) > 1 else ''}" for kind, names in named.items())
        splits = ", ".join(f"{info.rows} {split}" for split, info in self.splits.items())
        lines = [
            f"rows: {self.rows} ({splits})",
            f"columns: {columns}, as {count(self.signature.num_inputs, 'input')}",
            *self._describe_columns(),
            self._describe_values(),
        ]
        lines += filter(None, [tell_rows_without_target(self.target, self.rows_without_target, not self.classes)])
        together = "features equal those" if self.group_column is None else f"{show(self.group_column)} equals that"
        reasons = {
            "gap": "in the gaps before validation and test",
            "window": "older than the window",
            "units": f"whose {together} of a row in a later split",
        }
        lines += [f"left out: {count(number, 'row')} {reasons[name]}" for name, number in self.rows_left_out.items()]
        if self.test_copies is not None:
            lines.append(f"copies: {self._count_copies(self.test_copies)}")
        lines += [f"dropped: column {show(name)}, {reason}" for name, reason in self.dropped_columns.items()]
        return lines + self.list_remarks()

    def _describe_values(self) -> str:
        """What is predicted: the largest classes, or the span of the numbers."""
        if not self.classes:
            return f"numbers of {show(self.target)}: {self.describe_numbers()}"
        totals = [sum(counts) for counts in zip(*(info.class_counts for info in self.splits.values()), strict=True)]
        largest = sorted(zip(self.classes, totals, strict=True), key=lambda pair: -pair[1])
        classes = ", ".join(f"{show(label)} ({total})" for label, total in largest[:MAX_CLASSES_SHOWN])
        more = f" and {len(largest) - MAX_CLASSES_SHOWN} more" if len(largest) > MAX_CLASSES_SHOWN else ""
        return f"classes of {show(self.target)}: {classes}{more}"

    def describe_numbers(self) -> str:
        """Describe the numbers of the target in the train rows."""
        marks, target = self.profiles[-1].marks, self.signature.target
        return f"{marks[0]:.6g} to {marks[-1]:.6g}, mean {target.centers[0]:.6g}, deviation {target.scales[0]:.6g} in train"

    def list_columns(self) -> list[tuple[str, str, str, int, int]]:
        """List the columns that are learned from: name, kind, how it is read, train rows without a value, and inputs."""
        missing = {profile.name: profile.num_missing for profile in self.profiles}
        return [
            (column.name, *_describe_column(column), missing.get(column.name, 0), len(name_inputs([column])))
            for column in self.columns
        ]

    def _describe_columns(self) -> list[str]:
        """A line for each of the first columns; none if they are plain numbers."""
        rows = self.list_columns()
        if all(kind == "number" and not how and not missing for _, kind, how, missing, _ in rows):
            return []
        lines = []
        for name, kind, how, missing, num_inputs in rows[:MAX_COLUMNS_SHOWN]:
            told = [kind, how, f"missing in {count(missing, 'train row')}" if missing else "", count(num_inputs, "input")]
            lines.append(f"- {show(name)}: {', '.join(filter(None, told))}")
        if others := Counter(kind for _, kind, *_ in rows[MAX_COLUMNS_SHOWN:]):
            lines.append(f"- and {', '.join(f'{number} {kind}' for kind, number in others.most_common())} columns more")
        return lines

    def list_warnings(self) -> list[str]:
        """List the problems of the data that a person should fix."""
        return [*filter(None, [self.tell_rare_classes()]), *self._warn_of_copies()]

    def tell_rare_classes(self) -> str | None:
        """Say which classes the model does not learn, as they have too few rows."""
        return tell_rare_classes(self.target, self.rare_classes, self.rare_places, MAX_CLASSES_SHOWN)

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
            f"expected test rows that are new to the model, found copies: {self._count_copies(self.test_copies)}; the test score"
            f" may be too good: {remedy}"
        ]

    def _count_copies(self, copies: Copies) -> str:
        by_chance = f"about {copies.by_chance:.0f} would by chance"
        return f"{copies.rows} of {self.splits['test'].rows} test rows have the features of a train row ({by_chance})"


def _describe_column(column: AnyColumn) -> tuple[str, str]:
    """What a column is, and how its cells are read where that does not go without saying."""
    how = "" if column.format is None else column.format.describe()
    if column.is_constant:
        return "constant", how
    if isinstance(column, CategoricalColumn):
        return "category", f"{len(column.categories)} kept"
    return "time" if isinstance(column.format, ClockFormat) else KINDS[column.kind], how


def expect_table(examples: Examples, what: str) -> Manifest:
    """Return the examples of a table; raise SettingsError if a model has learned from other ones."""
    if isinstance(examples, Manifest):
        return examples
    raise SettingsError(
        f"{what}: expected a model of a table, found one of items of a data set; load it by `refit.load_model`, whose `predict`"
        " takes a data set or tensors"
    )


def check_sources(manifest: Manifest, digests: Sequence[str | None]) -> None:
    """Raise DataError if the bytes of `data.source` or `data.test_source` are no longer those of these digests."""
    for name, before, now in zip(
        ("source", "test_source"), digests, (manifest.source_digest, manifest.test_source_digest), strict=True
    ):
        if before is not None and before != now:
            raise DataError(f"data.{name}: expected the same bytes as when the run began, found others; run again")


def load_test_rows(manifest: Manifest, store: Store) -> pl.DataFrame:
    """Load the test rows with all their cells as they were read, in the order of `load_split`; raises as `load_split` does."""
    if manifest.test_rows is None:
        raise manifest.lack("test")
    with store.local_file(manifest.test_rows.digest) as path:
        return pl.read_parquet(path, glob=False, hive_partitioning=False)
