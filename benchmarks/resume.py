"""Kill training at random moments, run the same command again until it ends, and compare the weights: Refit beside its peers.

Run as `python benchmarks/resume.py --kills 20 --terms 8 --seed 0`; needs the `bench` extra. The work is that of
`tests/e2e/kill_campaign.py`, its rows frozen once by Refit and read by all. Each library is compared with itself alone: two
undisturbed runs, which must agree, then the disturbed ones. All use one CPU thread. What each does to resume:

- Refit: `refit train` with `checkpoint.every_seconds = 0.05`; nothing else.
- Lightning: `Trainer.fit(ckpt_path="last")` with `ModelCheckpoint(save_last=True, save_on_exception=True)`, after every epoch or
  every 100 steps (as often as Refit, but Lightning itself warns against going on inside an epoch).
- skorch: `LoadInitState` from a `Checkpoint(monitor=None)` of every epoch; the script itself works out the epochs that remain,
  the step of the learning rate, and the best epoch.

The scripts in `peers/` say more. The weights compared are those of the best epoch, which all of them keep. An epoch counts as
trained again when a run prints its end twice; what was lost inside an epoch is not counted.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import safetensors.torch
from rich.console import Console
from rich.table import Table

from refit.settings import SettingsTree
from refit.store.store import Store
from refit.tables.dataset import build_dataset
from refit.tables.table_examples import load_manifest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "e2e"))
from kill_campaign import DISTURBANCES_PER_RUN, REFIT, SETTINGS, running_server, write_work  # noqa: E402

LR = "0.03"
"""As in `peers/digits.py`; at the campaign's 0.3 every unit dies in the first epoch, and accuracy stays at chance."""
PEERS = ROOT / "benchmarks" / "peers"
EPOCH_ENDED = r"epoch \d+/"
"""Not `epoch 3: going on after batch 43`, which Refit prints when it resumes inside one."""
LIGHTNING = (sys.executable, str(PEERS / "lightning_digits.py"), "rows.safetensors")


@dataclass(frozen=True)
class Library:
    """A command that trains, and goes on training when it is run again."""

    command: Sequence[str]
    """Followed by the folder of the run."""
    begun: str
    """Matches the line after which it trains."""


LIBRARIES = {
    "refit": Library((REFIT, "train", "--json", "--optimizer.lr", LR, "--store.url"), r"classes|epochs 1"),
    "lightning, every epoch": Library((*LIGHTNING, "--every-n-train-steps", "0"), "training"),
    "lightning, every 100 steps": Library((*LIGHTNING, "--every-n-train-steps", "100"), "training"),
    "skorch": Library((sys.executable, str(PEERS / "skorch_digits.py"), "rows.safetensors"), "training"),
}


@dataclass
class Attempt:
    """One process."""

    digest: str | None
    """Of the weights; None if it did not end."""
    signal_name: str | None
    lines: list[tuple[float, str]]
    """What it printed on stderr, and when."""

    @property
    def epochs(self) -> list[str]:
        """The epochs that it trained to their end."""
        return [line.partition(":")[0] for _, line in self.lines if re.match(EPOCH_ENDED, line)]

    def training_seconds(self, begun: str) -> float:
        """From the line that matches `begun` to the end of the last epoch."""
        first = next(at for at, line in self.lines if re.match(begun, line))
        return next(at for at, line in reversed(self.lines) if re.match(EPOCH_ENDED, line)) - first


@dataclass
class Tally:
    """What came of one library."""

    library: str
    is_repeatable: bool
    """Whether two undisturbed runs gave the same bits."""
    num_epochs: int
    """Of an undisturbed run."""
    signals: dict[str, int] = field(default_factory=lambda: {"SIGKILL": 0, "SIGTERM": 0})
    runs: int = 0
    ended: int = 0
    equal: int = 0
    epochs_repeated: int = 0
    failures: list[str] = field(default_factory=list)
    """The last line of each process that died without a signal."""


def freeze_rows(folder: Path) -> None:
    """Write the train and validation rows that Refit trains on, in its order, for the peers."""
    settings = SettingsTree(**tomllib.loads(SETTINGS))
    store = Store(str(folder / "frozen"))
    data = settings.data.model_copy(update={"source": str(folder / settings.data.source)})
    manifest = load_manifest(build_dataset(data, settings.seed, store), store)
    tensors = {}
    for split in ("train", "val"):
        tensors[f"{split}_x"], tensors[f"{split}_y"] = manifest.load_split(split, store)
    safetensors.torch.save_file(tensors, folder / "rows.safetensors")


def run_once(
    library: Library, folder: Path, name: str, url: str, delay: float = 0, signum: signal.Signals | None = None
) -> Attempt:
    """Start the command; `delay` seconds after it began to train, send the signal, if it still runs."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PREFECT_API_URL": url, "PREFECT_HOME": str(folder / "prefect")}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [*library.command, str(folder / name)],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
        )
        lines, sent = [], None
        for line in process.stderr:
            lines.append((time.monotonic(), line.rstrip()))
            if signum is not None and sent is None and re.match(library.begun, line):
                time.sleep(delay)
                if process.poll() is None:
                    sent = signum.name
                    process.send_signal(signum)
        process.wait()
        output.seek(0)
        printed = output.read()
    digest = re.search(r'"weights_digest": "(\w+)"', printed)
    return Attempt(digest and digest[1], sent, lines)


def run_until_end(
    library: Library, folder: Path, name: str, url: str, signals: list[signal.Signals], duration: float, chance: random.Random
) -> list[Attempt]:
    """Run the command until it ends by itself, the first few times with the last of `signals`, which are taken off the list."""
    attempts: list[Attempt] = []
    while True:
        signum = signals[-1] if signals and len(attempts) < DISTURBANCES_PER_RUN else None
        attempt = run_once(library, folder, name, url, chance.uniform(0, duration), signum)
        attempts.append(attempt)
        if attempt.signal_name is not None:
            signals.pop()
        if attempt.digest is not None or attempt.signal_name is None:
            return attempts


def run_campaign(name: str, folder: Path, url: str, num_kills: int, num_terms: int, seed: int) -> Tally:
    """Disturb runs of one library until that many signals have been sent, and let each run end after a few of them."""
    library, label = LIBRARIES[name], re.sub(r"\W+", "-", name)
    straight, again = (run_once(library, folder, f"{label}-straight-{index}", url) for index in range(2))
    if straight.digest is None:
        raise RuntimeError("\n".join(line for _, line in straight.lines))
    tally = Tally(name, straight.digest == again.digest, len(straight.epochs))
    duration = min(straight.training_seconds(library.begun), again.training_seconds(library.begun))
    chance = random.Random(seed)
    signals = [signal.SIGKILL] * num_kills + [signal.SIGTERM] * num_terms
    chance.shuffle(signals)
    num_started = 0
    while signals:
        num_started += 1
        attempts = run_until_end(library, folder, f"{label}-{num_started}", url, signals, duration, chance)
        sent = [attempt.signal_name for attempt in attempts if attempt.signal_name is not None]
        final = attempts[-1]
        if not sent and final.digest is not None:
            continue  # it ended before its signal, so it says nothing
        for signal_name in sent:
            tally.signals[signal_name] += 1
        seen = Counter(epoch for attempt in attempts for epoch in attempt.epochs)
        tally.epochs_repeated += seen.total() - len(seen)
        tally.runs += 1
        tally.ended += final.digest is not None
        tally.equal += final.digest == straight.digest
        if final.digest is None:
            tally.failures.append(final.lines[-1][1] if final.lines else "")
        print(f"{name}: {len(signals)} signals to go, {tally.equal} of {tally.runs} equal", file=sys.stderr, flush=True)
    return tally


def build_table(tallies: Sequence[Tally]) -> Table:
    """One row a library."""
    table = Table("library", "undisturbed, twice", "SIGKILL", "SIGTERM", "runs ended", "equal bits", "epochs trained again")
    for tally in tallies:
        table.add_row(
            tally.library,
            "equal" if tally.is_repeatable else "not equal",
            str(tally.signals["SIGKILL"]),
            str(tally.signals["SIGTERM"]),
            f"{tally.ended} of {tally.runs}",
            f"{tally.equal} of {tally.runs}",
            str(tally.epochs_repeated),
        )
    return table


def main() -> None:
    """Run the campaigns and print their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--terms", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the results here")
    parser.add_argument("--jobs", type=int, default=2, help="libraries at a time")
    parser.add_argument("--only", choices=LIBRARIES, nargs="+", default=list(LIBRARIES))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_work(folder)
        freeze_rows(folder)
        with running_server(folder) as url, ThreadPoolExecutor(given.jobs) as pool:
            tallies = list(pool.map(lambda only: run_campaign(only, folder, url, given.kills, given.terms, given.seed), given.only))
    Console(width=132).print(build_table(tallies))
    if given.json is not None:
        versions = {package: version(package) for package in ("refit", "torch", "lightning", "skorch")}
        results = {"seed": given.seed, "versions": versions, "libraries": [asdict(tally) for tally in tallies]}
        given.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
