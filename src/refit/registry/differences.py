"""Differences between two saved versions in settings, data and metrics. Reads only their records, no weights and no rows."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from refit.registry.versions import load_part, read_record
from refit.store.store import Store
from refit.training.metrics import FIGURES

Pair = tuple[Any, Any]
"""The values of two versions; None if a version has none."""


@dataclass(frozen=True)
class Differences:
    """Two versions side by side."""

    settings: dict[str, Pair]
    """Settings that differ, by dotted name."""
    data: dict[str, Pair]
    """Rows of each split, and differences in target, classes, kinds of columns, and digests of the source and the test rows."""
    metrics: dict[tuple[str, str], Pair]
    """By split and name."""


def find_differences(store: Store, one: tuple[str, int], other: tuple[str, int]) -> Differences:
    """Compare two versions, each given by name and number.

    Raises:
        StoreError: A version's files cannot be read, are damaged, or belong to another version.
    """
    for version in (one, other):
        read_record(store, *version)
    settings, manifests, metrics = (
        (load_part(store, *one, part), load_part(store, *other, part)) for part in ("settings", "manifest", "metrics")
    )
    data = _compare(_count_rows, manifests)
    for describe in (_describe_target, _describe_columns, _describe_digests):
        data |= _drop_equal(_compare(describe, manifests))
    return Differences(
        settings=_drop_equal(_compare(lambda tree: dict(_flatten(tree)), settings)),
        data=data,
        metrics=_compare(_list_metrics, metrics),
    )


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _count_rows(manifest: Mapping[str, Any]) -> dict[str, int]:
    return {f"{split} rows": info["rows"] for split, info in manifest["splits"].items()}


def _describe_target(manifest: Mapping[str, Any]) -> dict[str, Any]:
    target = manifest["signature"]["target"]
    kind = {} if target.get("kind", "classes") == "classes" else {"predicts": target["kind"]}
    return {"target": target["name"], **kind, **{f"class {label}": "there" for label in target["classes"]}}


def _describe_columns(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {f"column {column['name']}": column["kind"] for column in manifest.get("columns", [])}


def _describe_digests(manifest: Mapping[str, Any]) -> dict[str, Any]:
    digests = {"source": manifest["source_digest"], "test rows": (manifest.get("test_rows") or {}).get("digest")}
    return {f"digest of the {name}": digest and digest[:12] for name, digest in digests.items()}


def _list_metrics(metrics: Mapping[str, Any]) -> dict[tuple[str, str], float | None]:
    found: dict[tuple[str, str], float | None] = {}
    for split, scores in metrics.items():
        known = FIGURES if "accuracy" in scores else ("loss",)
        figures = {name: figure for name, figure in scores.get("figures", {}).items() if figure is not None}
        found |= {(split, name): figure for name, figure in {**{name: scores.get(name) for name in known}, **figures}.items()}
    return found


def _compare(describe: Callable[[Any], dict[Any, Any]], contents: tuple[Any, Any]) -> dict[Any, Pair]:
    one, other = map(describe, contents)
    return {name: (one.get(name), other.get(name)) for name in {**one, **other}}


def _drop_equal(pairs: Mapping[Any, Pair]) -> dict[Any, Pair]:
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
