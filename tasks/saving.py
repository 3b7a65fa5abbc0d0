"""Saving a version as a task, which Prefect tracks as an asset."""

from typing import Any

from prefect import get_run_logger
from prefect.assets import add_asset_metadata, materialize

from refit.refs import DatasetRef, EpochResult, Ref, SavedModel
from refit.registry.versions import load_part
from refit.runs.train import save_best
from refit.settings import SettingsTree
from refit.store.store import Store
from refit.tasks.caching import CACHED, RETRIED
from refit.training.metrics import FIGURES


def name_asset(model: str) -> str:
    """Return the key of a model's Prefect asset, which each of its versions materializes anew."""
    return f"refit://{model}"


@materialize(name_asset("model"), task_run_name="save version", **CACHED, **RETRIED)
def save_version(
    key: str,
    best: EpochResult,
    epochs: list[EpochResult],
    metrics: dict[str, Ref],
    snapshot: DatasetRef,
    settings: SettingsTree,
    refitted: EpochResult | None = None,
    neighbours: Ref | None = None,
) -> SavedModel:
    """Keep the weights of epoch `best` and, where there are any, of the last fit on all rows as the model's next version.

    The flow names the asset: `save_version.with_options(assets=[name_asset(settings.name)])`.
    """
    logger = get_run_logger()
    saved = save_best(key, best, epochs, metrics, snapshot, settings, refitted, neighbours, report=logger.info, warn=logger.warning)
    add_asset_metadata(name_asset(saved.name), _describe(saved, snapshot, best, settings))
    return saved


def _describe(saved: SavedModel, snapshot: DatasetRef, best: EpochResult, settings: SettingsTree) -> dict[str, Any]:
    metrics = load_part(Store(settings.store.url), saved.name, saved.version, "metrics")
    return {
        "version": saved.reference,
        "path": saved.path,
        "weights_digest": saved.weights_digest,
        "dataset_digest": snapshot.digest,
        "epoch": best.epoch,
        "scores": {
            split: {name: scored.get(name) for name in ("num_rows", *FIGURES)} | scored["figures"]
            for split, scored in metrics.items()
        },
    }
