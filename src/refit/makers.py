"""Who makes the examples of a run: a table's rows, or the items of the user's own data set. Nobody above asks which."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from refit.refs import DatasetRef, Ref
from refit.settings import DataSettings, SettingsTree
from refit.store.store import Store

if TYPE_CHECKING:  # which imports torch, and a night without news needs none
    from refit.data.examples import Examples

PACKAGE = Path(__file__).parent
MAKER = re.compile(rb'\{\s*"maker":\s*"(\w+)"')
Report = Callable[[str], object]


class Maker(Protocol):
    """Makes examples."""

    packages: tuple[str, ...]
    """Whose versions examples depend on."""

    def list_code(self) -> list[str]:
        """List the modules that examples depend on."""

    def digest_sources(self, settings: SettingsTree) -> tuple[str, str | None]:
        """Digest what examples are made from, and what separate test examples are; raises DataError where it cannot be read."""

    def list_functions(self, settings: SettingsTree) -> dict[str, str | None]:
        """List the user's own functions that examples depend on, by setting."""

    def list_ingredients(self, settings: SettingsTree) -> dict[str, object]:
        """List what examples depend on besides the settings of the data."""

    def build_snapshot(
        self, settings: SettingsTree, digests: Sequence[str | None], store: Store, report: Report, warn: Report
    ) -> DatasetRef:
        """Build the data set of a run, if its sources still have these digests, and report what it holds."""

    def parse(self, record: bytes) -> "Examples":
        """Read the record of a data set."""

    def explain_change(self, before: "Examples", settings: SettingsTree, store: Store) -> list[str]:
        """Say what has changed in the source since a data set."""

    def check_slices(self, slices: Sequence[str], data: DataSettings) -> None:
        """Raise DataError for slices that test examples will not have."""


class _Tables:
    packages: tuple[str, ...] = ("polars", "numpy", "duckdb", "charset-normalizer")
    overviews = ("deviations", "overview", "table_examples")
    """Modules that no data set depends on."""

    def list_code(self) -> list[str]:
        modules = [path.stem for path in sorted(PACKAGE.glob("tables/[!_]*.py")) if path.stem not in self.overviews]
        return [
            *(f"refit.tables.sources.{path.stem}" for path in sorted(PACKAGE.glob("tables/sources/[!_]*.py"))),
            *(f"refit.tables.{name}" for name in modules),
            *(f"refit.data.{name}" for name in ("identities", "profiles", "signature", "splits")),
        ]

    def digest_sources(self, settings: SettingsTree) -> tuple[str, str | None]:
        from refit.tables.sources.opening import digest_sources

        return digest_sources(settings.data.source, settings.data.test_source)

    def list_functions(self, settings: SettingsTree) -> dict[str, str | None]:  # noqa: ARG002
        return {}

    def list_ingredients(self, settings: SettingsTree) -> dict[str, object]:
        return {"training.quantiles": settings.training.quantiles} if settings.training.loss == "quantile" else {}

    def build_snapshot(
        self, settings: SettingsTree, digests: Sequence[str | None], store: Store, report: Report, warn: Report
    ) -> DatasetRef:
        from refit.tables.dataset import build_snapshot

        return build_snapshot(settings, digests, store, report, warn)

    def parse(self, record: bytes) -> "Examples":
        from refit.tables.table_examples import parse_manifest

        return parse_manifest(record)

    def explain_change(self, before: "Examples", settings: SettingsTree, store: Store) -> list[str]:  # noqa: ARG002
        from refit.tables.table_examples import TableExamples

        return before.explain_change(settings.data) if isinstance(before, TableExamples) else ["data.factory -> a table"]

    def check_slices(self, slices: Sequence[str], data: DataSettings) -> None:
        from refit.tables.columns import check_columns
        from refit.tables.sources.opening import open_source

        if slices:
            source = data.test_source or data.source
            check_columns("promotion.slices", slices, open_source(source, data).names(), source)


class _Items:
    packages: tuple[str, ...] = ("numpy",)

    def list_code(self) -> list[str]:
        return [
            *(f"refit.items.{path.stem}" for path in sorted(PACKAGE.glob("items/[!_]*.py"))),
            *(f"refit.data.{name}" for name in ("identities", "input_files", "inputs", "own_dataset", "own_functions")),
            *(f"refit.data.{name}" for name in ("profiles", "seeded", "signature")),
        ]

    def digest_sources(self, settings: SettingsTree) -> tuple[str, str | None]:
        from refit.items.digests import digest_data

        return digest_data(settings), None

    def list_functions(self, settings: SettingsTree) -> dict[str, str | None]:
        return {"data.factory": settings.data.factory, "loader.collate": settings.loader.collate}

    def list_ingredients(self, settings: SettingsTree) -> dict[str, object]:
        loss = settings.training.loss
        return {"target": "none" if settings.training.step else "any" if loss is None or ":" in loss else loss}

    def build_snapshot(
        self, settings: SettingsTree, digests: Sequence[str | None], store: Store, report: Report, warn: Report
    ) -> DatasetRef:
        from refit.items.making import build_snapshot

        return build_snapshot(settings, digests, store, report, warn)

    def parse(self, record: bytes) -> "Examples":
        from refit.data.examples import Examples

        return Examples.model_validate_json(record)

    def explain_change(self, before: "Examples", settings: SettingsTree, store: Store) -> list[str]:
        from refit.items.digests import explain_change

        return explain_change(before, settings, store)

    def check_slices(self, slices: Sequence[str], data: DataSettings) -> None:  # noqa: ARG002
        from refit.data.examples import refuse_slices

        refuse_slices(slices)


_MAKERS: dict[bytes, Maker] = {b"tables": _Tables(), b"items": _Items()}


def find_maker(data: DataSettings) -> Maker:
    """Find who makes the examples that settings describe."""
    return _MAKERS[b"tables" if data.factory is None else b"items"]


def load_record(ref: Ref, store: Store) -> "Examples":
    """Load the record of a data set, as its maker knows it."""
    return parse_record(store.get(ref.digest))


def parse_record(record: bytes) -> "Examples":
    """Read the record of a data set.

    Raises:
        ValueError: It is none.
    """
    found = MAKER.match(record)
    maker = _MAKERS.get(found[1]) if found else None
    if maker is None:
        raise ValueError(f"expected the record of a data set, found {record[:40]!r}")
    return maker.parse(record)
