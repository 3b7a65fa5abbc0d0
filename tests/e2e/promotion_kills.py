"""Kill processes that promote and roll back; look each time for one champion, whole, and a ledger that tells the truth.

python tests/e2e/promotion_kills.py --kills 100 --seed 0
"""

import argparse
import hashlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from refit.errors import StoreError
from refit.registry.ledger import Entry, load_ledger
from refit.registry.versions import add_version, check_version, move_alias, read_alias, rollback, version_folder
from refit.store.store import Store

NAME = "digits"
ALIAS = f"models/{NAME}/aliases/champion.json"
NUM_VERSIONS = 5
MAX_VISITS = 2
ROLLBACK, PROMOTION = 5, 4
"""The moves in which a worker kills itself; by then it has made one of each kind."""
CHECKS = (
    "chain holds",
    "ledger tells the truth",
    "one champion",
    "versions are whole",
    "alias put right",
    "rollback gives its bytes",
)


@dataclass
class Tally:
    """What came of it."""

    kills: int = 0
    left: Counter[str] = field(default_factory=Counter)
    """How far the move had come."""
    places: Counter[str] = field(default_factory=Counter)
    """Functions that killed themselves."""
    passed: Counter[str] = field(default_factory=Counter)
    leftovers: list[str] = field(default_factory=list)
    num_moves: int = 0

    def render(self) -> str:
        """The table."""
        rows = {
            "kills": f"{self.kills}, among {self.num_moves} moves that were made",
            "the move was": ", ".join(f"{state} {count}" for state, count in sorted(self.left.items())),
            "killed between lines of": ", ".join(f"{place} {count}" for place, count in self.places.most_common()),
            **{check: f"{self.passed[check]} of {self.kills}" for check in CHECKS},
            "files left over": str(len(self.leftovers)),
        }
        return "\n".join(f"{name:<26}{value}" for name, value in rows.items())


def work(url: str, doomed: int, share: float) -> None:
    """Promote, promote, roll back, and again; die in move `doomed` after that share of the lines that one of its kind takes."""
    store, visits, limit = Store(url), Counter[tuple[str, int]](), 0

    def count_lines() -> int:
        """Of a loop, the first turns alone, so that it does not outweigh the other steps."""
        return sum(min(count, MAX_VISITS) for count in visits.values())

    def watch(frame: FrameType, event: str, _: Any) -> Any:
        if "/refit/" not in frame.f_code.co_filename:
            return None
        if event == "line":
            visits[frame.f_code.co_filename, frame.f_lineno] += 1
            if limit and count_lines() >= limit:
                say(killed_in=f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}")
                os.kill(os.getpid(), signal.SIGKILL)
        return watch

    lines_of_kind = {}
    for move in itertools.count():
        is_rollback = move % 3 == 2
        champion = read_alias(store, NAME) or 0
        version = None if is_rollback else champion % NUM_VERSIONS + 1
        limit = max(1, int(lines_of_kind[is_rollback] * share)) if move == doomed else 0
        visits.clear()
        say(begins=version)
        sys.settrace(watch)
        if version is None:
            entry = rollback(store, NAME, f"move {move}")
        else:
            entry = move_alias(store, NAME, version, expected=champion, why=f"move {move}")
        sys.settrace(None)
        lines_of_kind[is_rollback] = count_lines()
        say(made=entry.model_dump())


def say(**content: Any) -> None:
    """Tell the campaign, at once."""
    print(json.dumps(content), flush=True)


def kill_once(url: str, chance: random.Random, kill: int, num_kills: int) -> list[dict[str, Any]]:
    """Start a worker and let it be killed: each other one by itself, between two lines, the others from here, at any moment."""
    doomed, share = (PROMOTION, ROLLBACK)[kill // 2 % 2], (kill + chance.random()) / num_kills
    kills_itself = bool(kill % 2)
    command = [sys.executable, __file__, "work", url, str(doomed if kills_itself else -1), str(share)]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said, began_at, seconds = [], 0.0, 0.0
    for line in worker.stdout or ():
        said.append(json.loads(line))
        if "begins" in said[-1]:
            began_at = time.perf_counter()
            if not kills_itself and len(said) == 2 * doomed + 1:
                time.sleep(chance.uniform(0, 1.2 * seconds))
                worker.kill()
        else:
            seconds = time.perf_counter() - began_at
    _, errors = worker.communicate()
    if worker.returncode != -signal.SIGKILL:
        raise RuntimeError(errors)
    return said


def find_champions(entries: list[Entry]) -> list[int]:
    """The champions that promotions have pushed and rollbacks popped, the present one last."""
    stack: list[int] = []
    for entry in entries:
        if entry.action == "rollback":
            stack.pop()
        else:
            stack.append(entry.after or 0)
    return stack


def read_version(store: Store, number: int) -> dict[str, bytes]:
    """All files of a version."""
    folder = version_folder(NAME, number)
    return {file: store.read(f"{folder}/{file}") for file in store.names(folder)}


def list_findings(
    store: Store, before: list[Entry], said: list[dict[str, Any]], written: dict[int, dict[str, bytes]], tally: Tally
) -> Iterator[str]:
    """Look at what a killed worker has left, then roll back as a user would; the checks that hold."""
    made = [Entry.model_validate(line["made"]) for line in said if "made" in line]
    begun = [line["begins"] for line in said if "begins" in line]
    position = json.loads(store.read(ALIAS))
    entries = load_ledger(store, NAME)
    yield "chain holds"
    rest = entries[len(before) + len(made) :]
    champions = find_champions(entries)
    is_expected = len(rest) <= len(begun) - len(made) and all(
        entry.action == "rollback" if begun[-1] is None else (entry.action, entry.after) == ("promote", begun[-1]) for entry in rest
    )
    if entries[: len(entries) - len(rest)] == before + made and is_expected and entries[-1].after == champions[-1]:
        yield "ledger tells the truth"
    tally.left[name_state(bool(rest), len(begun) > len(made), position["entry"] == len(entries))] += 1
    tally.num_moves += len(entries) - len(before)
    if read_alias(store, NAME) == champions[-1]:
        yield "one champion"
    check_version(store, NAME, champions[-1])
    if {number: read_version(store, number) for number in written} == written:
        yield "versions are whole"
    is_known = position in [{"version": entry.after, "entry": entry.number} for entry in entries[-2:]]
    if is_known and json.loads(store.read(ALIAS)) == {"version": champions[-1], "entry": len(entries)}:
        yield "alias put right"
    entry = rollback(store, NAME, "after a kill")
    if entry.after == champions[-2] and read_version(store, read_alias(store, NAME) or 0) == written[champions[-2]]:
        yield "rollback gives its bytes"


def name_state(is_written: bool, is_begun: bool, is_repeated: bool) -> str:
    """How far the last move had come."""
    if is_written:
        return "made but not told" if is_repeated else "made with the alias behind"
    return "not made" if is_begun else "made and told"


def run_campaign(folder: Path, num_kills: int, seed: int) -> Tally:
    """Kill that many workers on one store."""
    store, chance, tally = Store(str(folder / "store")), random.Random(seed), Tally()
    for _ in range(NUM_VERSIONS):
        weights = chance.randbytes(50_000)
        record = {"files": {"model.pt": hashlib.sha256(weights).hexdigest()}}
        add_version(store, NAME, {"model.pt": weights}, record)
    written = {number: read_version(store, number) for number in range(1, NUM_VERSIONS + 1)}
    move_alias(store, NAME, 1, expected=None, why="the first")
    for kill in range(num_kills):
        before = load_ledger(store, NAME)
        said = kill_once(store.url, chance, kill, num_kills)
        tally.kills += 1
        tally.places.update(line["killed_in"] for line in said if "killed_in" in line)
        try:
            tally.passed.update(list_findings(store, before, said, written, tally))
        except (StoreError, ValueError) as error:
            print(error, file=sys.stderr, flush=True)
        store.remove_leftovers()
        tally.leftovers += store.names("tmp")
    return tally


def main() -> None:
    """Run a campaign and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tally = run_campaign(Path(folder), given.kills, given.seed)
    print(tally.render())
    sys.exit(any(tally.passed[check] != given.kills for check in CHECKS) or bool(tally.leftovers))


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        work(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
    else:
        main()
