"""Builds the data set of a run: drafts it, and freezes inputs and manifest in the store."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import polars as pl

from refit.data.examples import SplitInfo
from refit.data.identities import Identities, Rows
from refit.data.signature import Kind, Target
from refit.refs import DatasetRef, Ref
from refit.settings import DataSettings, SettingsTree
from refit.store.store import Store
from refit.tables.copies import Copies, count_copies
from refit.tables.draft import draft_dataset, remark
from refit.tables.freezing import freeze_rows, freeze_split
from refit.tables.manifest import Manifest, check_sources
from refit.tables.preprocessing import AnyColumn, sign_columns
from refit.tables.profiles import profile_columns
from refit.tables.row_identities import identify_rows
from refit.tables.table_splits import TypedTable
from refit.tables.typed_target import list_targets

TEST_ROWS = "test rows"
Side = tuple[TypedTable, Identities, Rows]
"""A table, what tells its rows apart, and the numbers of those in a split."""


def build_dataset(settings: DataSettings, seed: int, store: Store, quantiles: Sequence[float] = ()) -> Ref:
    """Freeze the data set that the settings describe; the same rows and settings give the same digest.

    All that is learned from rows is learned from train rows, except the names of the classes. Nothing is stored until all is made.

    Args:
        settings: Which rows, and how they are divided.
        seed: Decides which rows a `random` split takes.
        store: Where it goes.
        quantiles: Which quantiles of numbers a model tells; empty, or if the target has classes, none.

    Returns:
        The ref of the manifest.

    Raises:
        DataError: A file, column or row is not what training needs.
    """
    draft = draft_dataset(settings, seed)
    signed = draft.signed.model_copy(update={"quantiles": [] if draft.signed.classes else [*quantiles]})
    source, test, columns, train = draft.source, draft.test, draft.columns, draft.parts["train"]
    kinds: dict[str, Kind] = {**draft.kinds, settings.target: "numeric" if draft.target_reading.is_number else "categorical"}
    profiles = profile_columns(source.frame.with_columns(source.target), kinds, train, source.groups)
    time_column = settings.time_column if settings.split == "time" else None
    identities = identify_rows(source, columns, time_column)
    sides = {split: (source, identities, rows) for split, rows in draft.parts.items()}
    if test is not None:
        sides["test"] = test, identify_rows(test, columns, time_column), test.labelled
    splits, test_rows = _freeze(columns, sides, draft.signed, store)
    fitted = {column.name for column in columns}
    manifest = Manifest(
        signature=sign_columns(columns, signed),
        columns=columns,
        profiles=profiles,
        time_column=time_column,
        group_column=settings.group_column,
        target_format=draft.target_reading.format,
        splits=splits,
        test_rows=test_rows,
        rows=sum(info.rows for info in splits.values()),
        rows_without_target=source.y.null_count() + (test.y.null_count() if test else 0) - sum(draft.rare.values()),
        rows_left_out=draft.left_out,
        source_rows=source.frame.height,
        test_copies=_count_copies(columns, sides["train"], sides["test"]) if "test" in sides else None,
        dropped_columns={
            **{name: f"{reason}; name it in data.features to learn from it" for name, reason in draft.labels.items()},
            **{name: "no value in the train rows" for name in draft.readings if name not in fitted},
        },
        remarks=remark(settings, draft),
        rare_classes=draft.rare,
        rare_places=draft.find_rare_places(),
        source_digest=source.table.digest,
        test_source_digest=test.table.digest if test else None,
        dialect=source.table.dialect,
    )
    data = manifest.model_dump_json().encode()
    return Ref(kind="dataset", digest=store.put(data), size=len(data))


def _freeze(
    columns: Sequence[AnyColumn], sides: Mapping[str, Side], target: Target, store: Store
) -> tuple[dict[str, SplitInfo], Ref | None]:
    """Put the tensors of each split, and all cells of the test rows, into the store, once all are made."""
    ys = {split: list_targets(target, typed, rows) for split, (typed, _, rows) in sides.items()}
    with store.temporary_folder() as folder:
        for split, side in sides.items():
            freeze_split(columns, *side, ys[split], folder / split)
        if "test" in sides:
            typed, _, rows = sides["test"]
            freeze_rows(typed.table.frame[rows], folder / TEST_ROWS)
        sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
        digests = {name: store.put_file(folder / name) for name in sizes}
    splits = {
        split: SplitInfo(
            rows=len(y),
            class_counts=np.bincount(y, minlength=len(target.classes)).tolist() if target.classes else [],
            digest=digests[split],
            size=sizes[split],
        )
        for split, y in ys.items()
    }
    test_rows = Ref(kind="rows", digest=digests[TEST_ROWS], size=sizes[TEST_ROWS]) if TEST_ROWS in digests else None
    return splits, test_rows


def build_snapshot(
    settings: SettingsTree,
    source_digests: Sequence[str | None],
    store: Store,
    report: Callable[[str], object],
    warn: Callable[[str], object],
) -> DatasetRef:
    """Build the data set of a run, if its sources still have the digests of the recipe, and report what it holds."""
    quantiles = settings.training.quantiles if settings.training.loss == "quantile" else ()
    ref = build_dataset(settings.data, settings.seed, store, quantiles)
    manifest = Manifest.model_validate_json(store.get(ref.digest))
    check_sources(manifest, source_digests)
    for line in manifest.describe():
        report(line)
    for line in manifest.list_warnings():
        warn(line)
    splits = {split: info.ref for split, info in manifest.splits.items()}
    return DatasetRef(**ref.model_dump(), splits=splits, test_rows=manifest.test_rows)


def _count_copies(columns: Sequence[AnyColumn], train: Side, test: Side) -> Copies:
    """Count the test rows whose features equal those of a train row."""
    (source, _, train_rows), (typed, _, test_rows) = train, test
    features = source.frame[[column.name for column in columns]]
    if typed is not source:
        test_rows = test_rows + features.height
        features = pl.concat([features, typed.frame[features.columns]], how="vertical_relaxed")
    return count_copies(features, train_rows, test_rows)
