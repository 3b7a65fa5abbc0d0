"""Everything about a GPU that only a GPU can show, in at most nine minutes: run as `make gpu-check` on a machine with CUDA.

Prints one line of JSON for each check as soon as it is done, what says most first, so that nothing is lost if the machine is taken
away. With `--stand-in`, the checks run on the device of `tests/stand_in.py`, which shows that this script works; what needs CUDA is
left out and listed.
"""

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / "tests"), str(ROOT / "benchmarks" / "contenders")]
from work import WORKS, Work, save_rows  # noqa: E402

SECONDS = 540
SECONDS_OF_TESTS = 240
SAMPLES = {"tiny": 3, "small": 3, "medium": 3, "wide": 2}
TESTS = ["tests/refit/test_accelerator.py", "tests/refit/runtime", "tests/refit/data", "tests/refit/engine/test_accelerators.py"]

Build = Callable[[], Callable[[], object]]
"""Builds what trains for an epoch."""
started = time.monotonic()


def tell(check: str, **found: Any) -> None:
    """Print what a check found."""
    print(json.dumps({"check": check, "at_seconds": round(time.monotonic() - started, 1), **found}), flush=True)


def seconds_left() -> float:
    """Seconds until the script has to end."""
    return max(1.0, SECONDS - (time.monotonic() - started))


def describe_environment(device: str, _: dict[str, str]) -> None:
    """Machine, versions and what PyTorch says of the device."""
    from refit.runtime.accelerators import find_missing, list_accelerators, measure_free_memory, name_accelerator

    packages = {}
    for name in ("torch", "triton", "lightning", "numpy", "prefect"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    found = [str(it) for it in list_accelerators()]
    tell("environment", python=platform.python_version(), packages=packages, accelerators=found, missing=find_missing())
    chosen = torch.device(device)
    described: dict[str, Any] = {"name": name_accelerator(chosen), "free_gb": round(measure_free_memory(chosen) / 1e9, 1)}
    if chosen.type == "cuda":
        described |= {
            "capability": torch.cuda.get_device_capability(chosen),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "count": torch.cuda.device_count(),
        }
    tell("device", **described)


def run_tests(device: str, environment: dict[str, str]) -> None:
    """The tests of accelerators; on CUDA, none may be skipped that needs it."""
    with tempfile.NamedTemporaryFile(suffix=".xml") as file:
        command = [sys.executable, "-m", "pytest", "-q", "--maxfail=10", f"--junitxml={file.name}", *TESTS]
        quiet = subprocess.DEVNULL
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=quiet, stderr=quiet) as tests:
            try:
                tests.wait(min(SECONDS_OF_TESTS, seconds_left()))
            except subprocess.TimeoutExpired:
                tests.send_signal(signal.SIGINT)  # it still writes what it has found
                tests.wait(60)
        cases = [*ElementTree.parse(file.name).getroot().iter("testcase")] if Path(file.name).stat().st_size else []
    skipped = [case.get("name") for case in cases if case.find("skipped") is not None]
    failed = {
        str(case.get("name")): str(problem.get("message"))[:500]
        for case in cases
        for problem in [*case.findall("failure"), *case.findall("error")]
    }
    is_right = tests.returncode == 0 and not (skipped and device.startswith("cuda"))
    tell(
        "tests",
        is_right=is_right,
        returncode=tests.returncode,
        passed=len(cases) - len(skipped) - len(failed),
        skipped=len(skipped),
        failed=failed,
    )


def time_epochs(build: Build, work: Work, device: torch.device) -> dict[str, Any]:
    """Seconds before the first epoch is over, and rows a second of the best later one."""
    begun = time.perf_counter()
    train_once = build()
    train_once()
    wait_for(device)
    first = time.perf_counter() - begun
    seconds = []
    for _ in range(SAMPLES[work.name]):
        begun = time.perf_counter()
        for _ in range(work.num_epochs):
            train_once()
        wait_for(device)
        seconds.append((time.perf_counter() - begun) / work.num_epochs)
    return {"first_epoch_seconds": round(first, 2), "rows_per_second": round(work.num_steps * work.batch_size / min(seconds))}


def wait_for(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def build_plain(work: Work, x: Any, y: Any, device: torch.device) -> Callable[[], object]:
    """The notebook's loop on the device, with its own loader."""
    from torch_parts import build_loader, build_network, build_optimizer

    network = build_network(work).to(device)
    optimizer = build_optimizer(work, network, fused=False)
    loader = build_loader(torch.from_numpy(x), torch.from_numpy(y), work.batch_size, is_gathered=False)

    def train_once() -> None:
        for rows, classes in loader:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(rows.to(device)), classes.to(device)).backward()
            optimizer.step()

    return train_once


def build_products(work: Work, device: torch.device) -> Callable[[], object]:
    """The matrix products of an epoch alone."""
    parts = [(torch.randn(m, k, device=device), torch.randn(k, n, device=device)) for m, k, n in work.products]

    def multiply_once() -> None:
        for _ in range(work.num_steps):
            for left, right in parts:
                torch.mm(left, right)

    return multiply_once


def time_lightning(work: Work, x: Any, y: Any, device: torch.device) -> dict[str, Any] | None:
    """Lightning on the device, if it is installed."""
    try:
        from lightning_trainer import train
    except ImportError:
        return None
    laps: list[float] = []
    train(work, x, y, 0, 3, lambda: laps.append(time.perf_counter()), "plain", "gpu" if device.type == "cuda" else "cpu")
    return {"rows_per_second": round(work.num_steps * work.batch_size / min(after - before for before, after in pairwise(laps)))}


def compare_speed(device: str, _: dict[str, str]) -> None:
    """Rows a second of all engines on the four works of `speed.py`, here and on the CPU, beside a plain loop and Lightning."""
    import numpy as np

    from refit.runtime.devices import computing_on
    from refit.settings import ComputeSettings

    gpu = torch.device(device)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("tiny", "wide", "small", "medium"):
            work = WORKS[name]
            save_rows(work, Path(folder))
            x, y = (np.load(Path(folder) / f"{name}-{part}.npy") for part in "xy")
            if gpu.type != "cuda":
                work, x, y = shorten(work, x, y)
            for contender, kind, build in list_contenders(work, x, y, gpu):
                if seconds_left() < 60:
                    break
                with computing_on(kind, ComputeSettings()):
                    tell("speed", work=name, contender=contender, **time_epochs(build, work, kind))
            peer = time_lightning(work, x, y, gpu) if seconds_left() > 60 else None
            if peer:
                tell("speed", work=name, contender="Lightning", **peer)


def list_contenders(work: Work, x: Any, y: Any, gpu: torch.device) -> list[tuple[str, torch.device, Build]]:
    """Name and device of each contender, and what builds it."""
    from refit_epochs import build_epoch

    from refit.runtime.accelerators import CPU

    chosen = [(gpu, "eager"), (gpu, "compiled"), (CPU, "eager"), (CPU, "compiled")]
    ours: list[tuple[str, torch.device, Build]] = [
        (f"{engine} {kind.type}", kind, lambda kind=kind, engine=engine: build_epoch(work, x, y, 0, engine, None, kind)[1])
        for kind, engine in chosen
        if gpu.type == "cuda" or (kind, engine) != (gpu, "compiled")  # PyTorch's compiler knows no stand-in
    ]
    others: list[tuple[str, torch.device, Build]] = [
        ("plain loop", gpu, lambda: build_plain(work, x, y, gpu)),
        ("products", gpu, lambda: build_products(work, gpu)),
    ]
    return ours + others


def shorten(work: Work, x: Any, y: Any) -> tuple[Work, Any, Any]:
    """A few steps of a work, for a device that is none."""
    from dataclasses import replace

    num_rows = 8 * work.batch_size
    return replace(work, num_rows=num_rows, num_epochs=1), x[:num_rows], y[:num_rows]


def measure_price(device: str, _: dict[str, str]) -> None:
    """What determinism costs: an epoch of the largest work with and without it."""
    import numpy as np
    from refit_epochs import build_epoch

    from refit.runtime.devices import computing_on
    from refit.settings import ComputeSettings

    work, gpu = WORKS["wide"], torch.device(device)
    with tempfile.TemporaryDirectory() as folder:
        save_rows(work, Path(folder))
        x, y = (np.load(Path(folder) / f"wide-{part}.npy") for part in "xy")
    if gpu.type != "cuda":
        work, x, y = shorten(work, x, y)
    for is_deterministic in (True, False, True, False):
        with computing_on(gpu, ComputeSettings(deterministic=is_deterministic)):
            found = time_epochs(lambda: build_epoch(work, x, y, 0, "eager", None, gpu)[1], work, gpu)
        tell("price of determinism", deterministic=is_deterministic, **found)


def kill_penguins(device: str, environment: dict[str, str]) -> None:
    """`refit train` from the command line, once whole and once killed inside an epoch: the same weights."""
    digests = []
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder) / "rows.csv")
        for url, is_killed in (("whole", False), ("killed", True)):
            command = [sys.executable, "-c", "from refit.commands.cli import main; main()", "train", "--json"]
            given = {
                "data.source": "rows.csv",
                "compute.device": device,
                "store.url": url,
                "training.num_epochs": "3",
                "model.dropout": "0.3",
                "loader.batch_size": "4",
                "checkpoint.every_seconds": "0.05",
            }
            flags = [part for name, value in given.items() for part in (f"--{name}", value)]
            place = {**environment, "PREFECT_HOME": str(Path(folder) / "prefect")}
            if is_killed:
                kill_within_epoch([*command, *flags], Path(folder), place, Path(folder) / url / "partial")
            finished = subprocess.run(
                [*command, *flags], cwd=folder, env=place, capture_output=True, text=True, timeout=seconds_left(), check=False
            )
            found = re.search(r'"weights_digest": "(\w+)"', finished.stdout)
            digests.append(found[1] if found else finished.stderr[-800:])
    tell("killed inside an epoch", is_right=digests[0] == digests[1], digests=digests)


def kill_within_epoch(command: list[str], folder: Path, environment: dict[str, str], partials: Path) -> None:
    """Start a run, and kill it once it keeps a checkpoint inside an epoch."""
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        while run.poll() is None and not (partials.is_dir() and any(partials.iterdir())):
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
        tell("killed", was_running=run.wait() == -signal.SIGKILL)


def write_rows(path: Path) -> None:
    """A table of three classes."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(3000) % 3
    x = torch.randn(3000, 4, generator=generator) + y[:, None]
    lines = [",".join(map(str, [*map(float, row), int(label)])) for row, label in zip(x.tolist(), y.tolist(), strict=True)]
    path.write_text("\n".join(["a,b,c,d,y", *lines]) + "\n")


CHECKS = (describe_environment, run_tests, kill_penguins, compare_speed, measure_price)


def main() -> None:
    """Run all checks in order; one that fails does not stop the others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stand-in", action="store_true", help="check this script, on a machine without a GPU")
    is_stand_in = parser.parse_args().stand_in
    places = [str(ROOT / "src"), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": ":".join(places)}
    with tempfile.TemporaryDirectory() as folder:
        if is_stand_in:
            import stand_in

            stand_in.register()
            environment["PYTHONPATH"] += f":{stand_in.as_package(Path(folder))}"
        elif not torch.cuda.is_available():
            sys.exit("expected a GPU that PyTorch can use, found none; `--stand-in` tries this script without one")
        for check in CHECKS:
            try:
                check("standin:0" if is_stand_in else "cuda:0", environment)
            except Exception as error:
                tell(check.__name__, is_right=False, error=f"{type(error).__name__}: {error}"[:2000])
    tell("end")


if __name__ == "__main__":
    main()
