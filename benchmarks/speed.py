"""Rows trained a second: Refit beside the loops and libraries that one would take instead, on four works, on one thread and on two.

Run as `make bench`, or `python benchmarks/speed.py` with the `bench` extra, on Linux, while nothing else runs. Each contender
trains in a process of its own, which stays; they take turns, in another order each round, and a sample is a few epochs. The first
sample warms up and is not counted. One thread means one processor: `OMP_NUM_THREADS`, `OPENBLAS_NUM_THREADS` and the affinity say
so. All do the same steps: same rows, network, batch size, optimizer, epochs, a new order of the rows every epoch, single precision.
The scripts in `contenders/` state what each was given. Losses are those of the final weights, by one formula; the seed is the
number of threads, so that two losses of a contender show the noise.

Prints tables, and writes `results/speed.json` and the page `docs/reference/speed.md` with its plot; `--quick` only tries whether
everything works, and writes nothing.
"""

import argparse
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from rich.console import Console
from speed_report import COMPILED, EAGER, LIMIT, PLOT, build_compile_table, build_tables, draw_plot, write_page

FOLDER = Path(__file__).parent
CONTENDERS = FOLDER / "contenders"
sys.path.append(str(CONTENDERS))
from work import WORKS, Work, save_rows  # noqa: E402

RESULTS = FOLDER / "results"
PACKAGES = ("torch", "lightning", "skorch", "scikit-learn", "jax", "numpy")
SCRIPTS = {
    EAGER: ("refit_epochs.py", "eager"),
    COMPILED: ("refit_epochs.py", "compiled"),
    "tuned loop": ("tuned_loop.py",),
    "notebook's loop": ("notebook_loop.py",),
    "Lightning, tuned": ("lightning_trainer.py", "tuned"),
    "Lightning": ("lightning_trainer.py", "plain"),
    "skorch, tuned": ("skorch_net.py", "tuned"),
    "skorch": ("skorch_net.py", "plain"),
    "MLPClassifier": ("sklearn_mlp.py",),
    "JAX": ("jax_scan.py",),
    LIMIT: ("products.py",),
}
NUM_SAMPLES = {"tiny": 5, "small": 5, "medium": 4, "wide": 3}
"""Counted, of each contender; a warm-up comes on top."""
PAUSE_SECONDS = 0.05
"""For threads that still spin after the turn before."""


@dataclass(frozen=True)
class Entry:
    """What came of one contender at one work."""

    contender: str
    work: str
    threads: int
    seconds: list[float]
    """Of each counted sample."""
    warm_up_seconds: float
    """What the first sample took longer than the median of the others: compiling, where there is any."""
    loss: float | None
    peak_mb: float


class Contender:
    """A process that trains when it is told to."""

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        script, *extra = SCRIPTS[name]
        self.name = name
        self.threads = threads
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by `stop`
        self.process = subprocess.Popen(
            [sys.executable, str(CONTENDERS / script), str(folder), str(threads), *extra],
            # An empty cache for the compiler, at first.
            env={**thread_environment(threads), "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            bufsize=1,
        )

    def ask(self, line: str = "") -> None:
        """Send a line."""
        self.process.stdin.write(line + "\n")

    def answer(self) -> Any:
        """What it prints next."""
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise RuntimeError(f"{self.name}: expected an answer, found the end of its process:\n{self.errors.read()[-2000:]}")
        return json.loads(line)

    def train_sample(self) -> float:
        """Train one sample and return its seconds."""
        time.sleep(PAUSE_SECONDS)
        self.ask()
        return self.answer()

    def finish(self, work: Work, seconds: list[float]) -> Entry:
        """Hear the rest."""
        first, *counted = seconds
        return Entry(self.name, work.name, self.threads, counted, first - statistics.median(counted), **self.answer())

    def stop(self) -> None:
        """End the process, done or not."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def thread_environment(threads: int) -> dict[str, str]:
    """The environment in which libraries use that many threads."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}


@contextmanager
def on_processors(count: int) -> Iterator[None]:
    """Have all processes that are started inside use only that many processors."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[-count:])
    yield
    os.sched_setaffinity(0, allowed)


@contextmanager
def waiting_contenders(names: Sequence[str], folder: Path, threads: int) -> Iterator[list[Contender]]:
    """Their processes, for as long as the context is open."""
    with ExitStack() as stack, on_processors(threads):
        contenders = [Contender(name, folder, threads) for name in names]
        for contender in contenders:
            stack.callback(contender.stop)
        yield contenders


def race(contenders: Sequence[Contender], work: Work, num_samples: int) -> list[Entry]:
    """Have the contenders take turns."""
    chance, seconds = random.Random(0), {contender.name: list[float]() for contender in contenders}
    for contender in contenders:
        contender.ask(json.dumps({**asdict(work), "num_samples": num_samples}))
    for contender in contenders:
        contender.answer()  # ready
    entries: dict[str, Entry] = {}
    for turn in range(num_samples):
        for contender in chance.sample(contenders, len(contenders)):
            seconds[contender.name].append(contender.train_sample())
            if turn == num_samples - 1:  # wait until its loss is computed, too, so that this takes no time of the next
                entries[contender.name] = contender.finish(work, seconds[contender.name])
        print(f"{work.name}, threads {contenders[0].threads}: {turn + 1} of {num_samples} samples", file=sys.stderr, flush=True)
    return [entries[contender.name] for contender in contenders]


def measure_limits(threads: int) -> dict[str, float]:
    """GFLOP/s of large products and GB/s of copies."""
    with on_processors(threads):
        command = [sys.executable, str(CONTENDERS / "limits.py")]
        done = subprocess.run(command, env=thread_environment(threads), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def describe_machine() -> dict[str, Any]:
    """Processor, threads and memory."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", cpuinfo)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": model[1] if model else platform.machine(),
        "instructions": [flag for flag in ("avx2", "avx512f", "amx_bf16") if re.search(rf"\b{flag}\b", cpuinfo)],
        "processors": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory / 2**30),
        "system": f"{platform.system()} {platform.release()}",
    }


def find_versions() -> dict[str, str]:
    """Versions of Python and of those packages that are installed."""
    installed = {distribution.name: distribution.version for distribution in distributions()}
    return {"python": platform.python_version(), **{name: installed[name] for name in PACKAGES if name in installed}}


def shrink(work: Work) -> Work:
    """The same steps, but few; as many as let the first epoch compile, four a call after an eager one."""
    return replace(work, num_rows=12 * work.batch_size, num_epochs=1)


def measure_compiling_again(works: Sequence[Work], folder: Path, threads: int) -> dict[str, float]:
    """Seconds by work until a new process has Refit's compiled steps, now that the compiler's cache is filled."""
    few = [replace(shrink(work), name=f"{work.name}, few rows") for work in works]
    for work in few:
        save_rows(work, folder)
    with waiting_contenders([COMPILED], folder, threads) as contenders:
        entries = [race(contenders, work, num_samples=2)[0] for work in few]
    return {work.name: entry.warm_up_seconds for work, entry in zip(works, entries, strict=True)}


def measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All that was asked for, as it is written."""
    works = [shrink(WORKS[name]) if given.quick else WORKS[name] for name in given.works]
    results: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": describe_machine(),
        "versions": find_versions(),
        "works": {work.name: work.describe() for work in works},
        "limits": {},
        "compiling_again": {},
        "entries": [],
    }
    for work in works:
        save_rows(work, folder)
    for threads in given.threads:
        results["limits"][str(threads)] = measure_limits(threads)
        with waiting_contenders(given.only, folder, threads) as contenders:
            for work in works:
                num_samples = 2 if given.quick else 1 + NUM_SAMPLES[work.name]
                results["entries"] += [asdict(entry) for entry in race(contenders, work, num_samples)]
        if COMPILED in given.only:
            results["compiling_again"][str(threads)] = measure_compiling_again(works, folder, threads)
    return results


def main() -> None:
    """Race, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SCRIPTS, nargs="+", default=list(SCRIPTS))
    parser.add_argument("--works", choices=WORKS, nargs="+", default=list(WORKS))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--quick", action="store_true", help="a few rows each, to see whether everything works")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results here, and neither plot nor page")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        results = measure(given, Path(name))
    console = Console(width=150)
    for table in build_tables(results):
        console.print(table)
    console.print(build_compile_table(results))
    text = json.dumps(results, indent=1) + "\n"
    if given.json is not None:
        given.json.write_text(text)
    elif not given.quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "speed.json").write_text(text)
        draw_plot(results, PLOT)
        write_page(results)


if __name__ == "__main__":
    main()
