"""A flow of six steps, two of which are Refit's: fetch rows, check them, retrain, tell a service, score, publish.

python examples/own_flow.py http://localhost:8000/champion
"""

import sys

import httpx
import polars as pl
from prefect import flow, task

from refit.flows.prediction import predict
from refit.flows.retraining import retrain
from refit.refs import Prediction, RetrainingResult
from refit.settings import SettingsTree


@task
def fetch(source: str) -> str:
    """Get today's rows; here, they are copied."""
    pl.read_csv(source, null_values="NA").write_parquet("today.parquet")
    return "today.parquet"


@task
def check(path: str) -> None:
    """Stop the night before anything is trained if the rows are not what they should be."""
    rows = pl.read_parquet(path)
    if rows.height < 100 or rows["species"].null_count():
        raise ValueError(f"{path}: expected 100 rows or more with a species each, found {rows.height}; look at the export")


@task(retries=3, retry_delay_seconds=10)
def tell(url: str, result: RetrainingResult) -> None:
    """Let a service know of its new model."""
    httpx.post(url, json={"champion": result.champion, "reason": result.reason}).raise_for_status()


@task
def publish(prediction: Prediction) -> int:
    """Hand the scores on; here, they are counted."""
    return pl.read_parquet(prediction.output).height


@flow
def nightly(url: str, source: str = "examples/penguins.csv") -> int:
    """Run the six steps."""
    path = fetch(source)
    check(path)
    settings = SettingsTree.model_validate({"name": "penguins", "data": {"source": path, "target": "species"}})
    result = retrain(settings)
    if result.outcome == "promoted":
        tell(url, result)
    prediction = predict("penguins", path, "scored.parquet", settings=settings)
    return publish(prediction)


if __name__ == "__main__":
    nightly(*sys.argv[1:])
