"""Kill real runs of `refit train` at random moments, go on with the same command, and compare with a run that nobody disturbed.

python tests/e2e/kill_campaign.py --kills 50 --terms 20 --seed 0 [--kind tabm|numbers]
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
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
from sklearn.datasets import load_digits

REFIT = str(Path(sys.executable).with_name("refit"))
NUM_COPIES = 8
"""Of the digits, with noise, so that an epoch lasts long enough to be hit inside."""
DISTURBANCES_PER_RUN = 5
SECONDS_TO_EXIT = 10
EPOCH = r"(on all rows, )?epoch \d+/"
SETTINGS = """
name = "digits"
preset = "plain"
seed = 3
[data]
source = "digits.parquet"
target = "target"
[loader]
batch_size = 32
drop_last = false
[model]
hidden_sizes = [64, 32]
dropout = 0.2
[optimizer]
name = "sgd"
lr = 0.03
momentum = 0.9
schedule = "cosine"
warmup_steps = 50
[training]
baseline = "none"
num_epochs = 10
patience = 2
max_grad_norm = 5.0
[checkpoint]
every_seconds = 0.05
[compute]
num_threads = 1
"""


TABM = ("[model]", '[model]\narchitecture = "tabm"\nnumber_embedding = "piecewise"')
KINDS = {
    "plain": [],
    "tabm": [TABM],
    "numbers": [TABM, ("[data]", '[data]\ntask = "regression"'), ("lr = 0.03", "lr = 0.003")],
}
"""What to train, as changes of the settings: a perceptron, TabM, or TabM on numbers."""


@dataclass
class Tally:
    """What came of it."""

    disturbed: Counter[str] = field(default_factory=Counter)
    """Signals sent, by name and phase."""
    runs: int = 0
    equal: int = 0
    epochs_repeated: int = 0
    slow_exits: list[float] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)

    def render(self) -> str:
        """The table."""
        by_signal = Counter(key.split()[0] for key in self.disturbed.elements())
        phases = ", ".join(f"{phase} {count}" for phase, count in sorted(self.disturbed.items()))
        return "\n".join(
            [
                f"signals sent      {dict(by_signal)} ({phases})",
                f"runs ended        {self.runs}",
                f"bits equal        {self.equal}",
                f"epochs repeated   {self.epochs_repeated}",
                f"exits over {SECONDS_TO_EXIT} s   {len(self.slow_exits)}",
                f"files left over   {len(self.leftovers)}",
            ]
        )


def write_work(folder: Path) -> None:
    """Write the table and the settings of the run."""
    digits, noise = load_digits(), np.random.default_rng(0)
    pixels = np.tile(digits.data, (NUM_COPIES, 1))
    pixels += noise.normal(0, 4, pixels.shape)
    columns = {f"p{index}": pixels[:, index] for index in range(pixels.shape[1])}
    pl.DataFrame({**columns, "target": np.tile(digits.target, NUM_COPIES)}).write_parquet(folder / "digits.parquet")
    (folder / "refit.toml").write_text(SETTINGS)


@contextmanager
def running_server(folder: Path) -> Iterator[str]:
    """A Prefect server of the campaign's own."""
    port = str(random.Random(os.getpid()).randrange(20000, 30000))
    environment = {**os.environ, "PREFECT_HOME": str(folder / "prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    command = [str(Path(sys.executable).with_name("prefect")), "server", "start", "--port", port, "--log-level", "ERROR"]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}/api"
    try:
        for _ in range(600):
            try:
                if httpx.get(f"{url}/health").is_success:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait()


@dataclass
class Attempt:
    """One process of `refit train`."""

    code: int
    lines: list[tuple[float, str]]
    output: str
    signal_name: str | None
    seconds_to_exit: float


def run_once(folder: Path, store: Path, url: str, trigger: str | None = None, delay: float = 0, signum: int = 0) -> Attempt:
    """Start the command; once a line matches `trigger`, wait `delay` seconds and send the signal, if it still runs."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [REFIT, "train", "--json", "--store.url", str(store)],
            cwd=folder,
            env={**os.environ, "PREFECT_API_URL": url, "PREFECT_HOME": str(folder / "prefect")},
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
        )
        lines, sent, sent_at = [], None, 0.0
        for line in process.stderr:
            lines.append((time.monotonic(), line.rstrip()))
            if trigger is not None and sent is None and re.match(trigger, line):
                time.sleep(delay)
                if process.poll() is None:
                    sent, sent_at = signal.Signals(signum).name, time.monotonic()
                    process.send_signal(signum)
        code = process.wait()
        process.stderr.close()
        seconds_to_exit = time.monotonic() - sent_at if sent else 0.0
        output.seek(0)
        return Attempt(code, lines, output.read(), sent, seconds_to_exit)


def comparable(output: str) -> dict[str, Any]:
    """What must be equal: weights, losses, metrics; not times or paths."""
    result = json.loads(output)
    for entry in result["epochs"]:
        del entry["seconds"], entry["rows_per_second"]
    return {name: result[name] for name in ("weights_digest", "held_back_digest", "best_epoch", "epochs", "metrics")}


def run_campaign(folder: Path, num_kills: int, num_terms: int, seed: int, kind: str = "plain") -> Tally:
    """Disturb runs until that many signals have been sent, and let each run end after a few of them."""
    write_work(folder)
    settings = SETTINGS.replace("[training]", "[training]\nrefit_on_all = true")
    for old, new in KINDS[kind]:
        settings = settings.replace(old, new)
    (folder / "refit.toml").write_text(settings)
    chance, tally = random.Random(seed), Tally()
    signals = [signal.SIGKILL] * num_kills + [signal.SIGTERM] * num_terms
    chance.shuffle(signals)
    with running_server(folder) as url:
        straight = run_once(folder, folder / "straight", url)
        if straight.code:
            raise RuntimeError("\n".join(line for _, line in straight.lines))
        expected = comparable(straight.output)
        last, best = len(expected["epochs"]), expected["best_epoch"]
        built = next(at for at, line in straight.lines if line.startswith("device"))
        begun = next(at for at, line in straight.lines if re.match(r"classes|numbers of", line))
        ended = next(at for at, line in straight.lines if line.startswith(f"epoch {last}/"))
        refitted = next(at for at, line in straight.lines if line.startswith(f"on all rows, epoch {best}/"))
        saved = next(at for at, line in straight.lines if line.startswith("saved"))
        phases = {
            "building": (r"device", begun - built),
            "training": (r"classes|numbers of|epochs 1", ended - begun),
            "refitting": (rf"epoch {last}/|epochs 1 to {last} ", refitted - ended),
            "saving": (rf"on all rows, epochs? (1 to )?{best}\b", saved - refitted),
        }
        while signals:
            store, seen = folder / f"store-{tally.runs}", Counter()
            for _ in range(DISTURBANCES_PER_RUN):
                phase = chance.choice(["building", "training", "training", "refitting", "saving"])
                trigger, duration = phases[phase]
                attempt = run_once(folder, store, url, trigger, chance.uniform(0, duration), signals[-1] if signals else 0)
                seen.update(line.partition(":")[0] for _, line in attempt.lines if re.match(EPOCH, line))
                if attempt.signal_name is None:
                    break
                signals.pop()
                tally.disturbed[f"{attempt.signal_name} {phase}"] += 1
                if attempt.seconds_to_exit > SECONDS_TO_EXIT:
                    tally.slow_exits.append(attempt.seconds_to_exit)
                if not signals:
                    break
            final = run_once(folder, store, url)
            seen.update(line.partition(":")[0] for _, line in final.lines if re.match(EPOCH, line))
            tally.runs += 1
            tally.equal += final.code == 0 and comparable(final.output) == expected
            tally.epochs_repeated += sum(seen.values()) - len(seen)
            tally.leftovers += [str(path) for name in ("tmp", "partial") for path in (store / name).glob("*")]
            print(
                f"run {tally.runs}: {sum(tally.disturbed.values())} signals so far, {tally.equal} equal",
                file=sys.stderr,
                flush=True,
            )
    return tally


def main() -> None:
    """Run a campaign and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--terms", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, default="plain")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tally = run_campaign(Path(folder), given.kills, given.terms, given.seed, given.kind)
    print(tally.render())
    sys.exit(tally.equal != tally.runs)


if __name__ == "__main__":
    main()
