"""Makes small wrong changes in a copy of Refit, one at a time, and lists those that no test notices.

    python tests/mutants.py                          # some of every module, always the same ones
    python tests/mutants.py data.splits promotion.decision --per-module 0    # all of two modules

Changed are comparisons, conditions, arithmetic, constants, slices, arguments, elements, handlers, and statements that are left out;
not the words of messages, annotations, docstrings and types (unions, the arguments of `dict[str, int]()`), nor `frozen=True` and
`strict=True`, which refuse mistakes that the code does not make. Changes that change nothing anyone could notice stand in
`equivalent_mutants.toml`, each with the reason. cosmic-ray leaves out no statement and no argument, and mutmut changes nothing in
decorated functions, such as context managers.
"""

import argparse
import ast
import builtins
import copy
import importlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.toml")
TESTS = {
    "data.identities": ["tables/test_hashes"],
    "data.splits": ["data/test_splits"],
    "tables.hashes": ["tables/test_hashes"],
    "tables.table_splits": ["tables/test_table_splits"],
    "tables.copies": ["tables/test_copies"],
    "data.drifts": ["data/test_drifts"],
    "promotion.bounds": ["promotion/test_bounds"],
    "promotion.fair_rows": ["promotion/test_comparison"],
    "promotion.comparison": ["promotion/test_comparison"],
    "promotion.decision": ["promotion/test_decision"],
    "registry.ledger": ["registry/test_ledger"],
    "registry.versions": ["registry/test_versions"],
    "runs.garbage": ["runs/test_garbage"],
    "runs.keys": ["runs/test_keys", "promotion/test_news"],
    "runs.recipes": ["runs/test_recipes"],
    "runs.results": ["runs/test_results"],
    "runtime.randomness": ["runtime/test_randomness"],
    "store.disk": ["store/test_store"],
    "store.store": ["store/test_store"],
    "training.checkpoints": ["training/test_checkpoints"],
}
"""The modules that are changed, and the tests, in `tests/refit`, that ought to notice; all others would take too long."""
MAX_SURVIVING = 0.05
SWAPS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.MatMult: ast.Mult,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.BitXor: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
TAKES_LESS = {"Path", "get", "getattr", "next", "round", "rsplit", "split", "suppress"}
"""Functions whose last argument can be left out; of others it is an error that any test notices."""
CHANGES_TYPE = {"decode", "encode", "hexdigest", "items", "keys", "model_dump", "model_dump_json", "values"}
"""Methods likewise."""


@dataclass(frozen=True)
class Mutant:
    """A changed module: the change, under a name that outlives changes elsewhere, and the whole source with it."""

    module: str
    name: str
    source: str


def list_mutants(module: str, source: str) -> list[Mutant]:
    """All changes of a module's source."""
    tree, seen, mutants = ast.parse(source), Counter[str](), []
    for scope, parent, field, index in _list_places(tree, ""):
        node = getattr(parent, field) if index is None else getattr(parent, field)[index]
        for other in _vary(node):
            if isinstance(parent, ast.Expr) and not isinstance(other, ast.Call):
                continue  # a statement, which is left out as such
            name = f"{scope}: {' '.join(_name(node).split())} -> {' '.join(_name(other).split())}"
            seen[name] += 1
            _put(parent, field, index, other)
            changed = ast.unparse(ast.fix_missing_locations(tree))
            _put(parent, field, index, node)
            mutants.append(Mutant(module, name if seen[name] == 1 else f"{name} ({seen[name]})", changed))
    return mutants


def _list_places(node: ast.AST, scope: str) -> Iterator[tuple[str, ast.AST, str, int | None]]:
    """Where a node hangs that may be changed: function or class, parent, field, place in a list."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        scope = f"{scope}.{node.name}".lstrip(".")
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "format_spec") or isinstance(node, ast.Raise) or _is_guard(node):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            is_text = isinstance(child, ast.Constant) and isinstance(node, ast.JoinedStr | ast.Expr)
            if isinstance(child, ast.AST) and not is_text and not _is_type(child, node):
                yield scope, node, field, index
                yield from _list_places(child, scope)


def _is_guard(node: ast.AST) -> bool:
    return isinstance(node, ast.keyword) and node.arg in ("frozen", "strict") and ast.unparse(node.value) == "True"


def _is_type(node: ast.AST, parent: ast.AST) -> bool:
    """Whether only a type checker reads it: the type that is called in `dict[str, int]()`, or the name given to a union."""
    match node:
        case ast.Subscript():
            return isinstance(parent, ast.Call) and node is parent.func
        case ast.Assign(targets=[ast.Name(id=name)], value=ast.BinOp(op=ast.BitOr())):
            return not name.isupper()
    return False


def _vary(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in place of a node."""
    changed = partial(_change, node)
    match node:
        case ast.Compare(ops=[op]) | ast.BoolOp(op=op) | ast.BinOp(op=op):
            swapped = SWAPS[type(op)]()
            yield changed(ops=[swapped]) if isinstance(node, ast.Compare) else changed(op=swapped)
    match node:
        case ast.BoolOp(values=values):
            yield from (changed(values=rest) if len(rest) > 1 else rest[0] for rest in _leave_one_out(values))
        case ast.BinOp(left=left):
            yield left
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield ast.Constant(value + 1 if value < 100 else 2 * value)
        case ast.Constant(value=str(value)) if re.fullmatch(r"\S+", value):
            yield ast.Constant(f"{value}x")
        case ast.If() | ast.IfExp():
            yield from (changed(test=ast.Constant(value)) for value in (True, False))
        case ast.While(test=test, body=body):
            yield changed(test=ast.Constant(False))
            if not any(isinstance(inner, ast.Break | ast.Continue) for inner in ast.walk(node)):
                yield ast.If(test, body, [])
        case ast.comprehension(ifs=ifs):
            yield from (changed(ifs=rest) for rest in _leave_one_out(ifs))
        case ast.Slice():
            yield from (changed(**{bound: None}) for bound in ("lower", "upper", "step") if getattr(node, bound))
        case ast.Call(func=func, args=args, keywords=keywords):
            left_out = (keyword for keyword in keywords if not _is_guard(keyword))
            yield from (changed(keywords=[other for other in keywords if other is not keyword]) for keyword in left_out)
            called = func.attr if isinstance(func, ast.Attribute) else ast.unparse(func)
            if args[1:] and called in TAKES_LESS:
                yield changed(args=args[:-1])
            if isinstance(func, ast.Name) and called in dir(builtins) and called != "isinstance":
                yield from (arg for arg in args if not isinstance(arg, ast.Starred | ast.GeneratorExp))
            if isinstance(func, ast.Attribute) and not args and not keywords and called not in CHANGES_TYPE:
                yield func.value
        case ast.Dict(keys=keys, values=values):
            yield from (changed(keys=a, values=b) for a, b in zip(_leave_one_out(keys), _leave_one_out(values), strict=True))
        case ast.List(ctx=ast.Load(), elts=elements) | ast.Tuple(ctx=ast.Load(), elts=elements) | ast.Set(elts=elements):
            yield from (changed(elts=rest) for rest in _leave_one_out(elements) if rest)
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Raise() | ast.Delete():
            yield ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript() | ast.Tuple(elts=[ast.Attribute(), *_])]):
            yield ast.Pass()
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
            yield ast.Return(None)
        case ast.Continue():
            yield ast.Break()
        case ast.Break():
            yield ast.Continue()
        case ast.With(items=items, body=body):
            for i in (i for i, item in enumerate(items) if item.optional_vars is None):
                rest = items[:i] + items[i + 1 :]
                yield changed(items=rest) if rest else ast.If(ast.Constant(True), body, [])
        case ast.Try(finalbody=[_, *_], handlers=handlers, body=body):
            yield changed(finalbody=[]) if handlers else ast.If(ast.Constant(True), body, [])
        case ast.ExceptHandler():
            yield changed(type=ast.Tuple([], ast.Load()))
        case ast.FunctionDef(decorator_list=decorators):
            kept = [decorator for decorator in decorators if not isinstance(decorator, ast.Call)]
            if kept != decorators:
                yield changed(decorator_list=kept)


def _leave_one_out(nodes: list) -> list[list]:
    return [nodes[:i] + nodes[i + 1 :] for i in range(len(nodes))]


def _change(node: ast.AST, **fields: object) -> ast.AST:
    other = copy.copy(node)
    for field, value in fields.items():
        setattr(other, field, value)
    return other


def _put(parent: ast.AST, field: str, index: int | None, node: ast.AST) -> None:
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


def _name(node: ast.AST) -> str:
    """A node in words, of a statement with a block its first line."""
    match node:
        case ast.Slice():
            return f"[{ast.unparse(node)}]"
        case ast.stmt() | ast.ExceptHandler():
            lines = ast.unparse(node).splitlines()
            return lines[-1 if isinstance(node, ast.Try) else 0] if hasattr(node, "body") else " ".join(lines)
    return ast.unparse(node)


def _copy_tree() -> None:
    """Give this worker process a copy of the tree to change, and go there."""
    folder = Path(tempfile.mkdtemp(prefix="worker-", dir=os.environ["MUTANTS"]), "refit")
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    os.chdir(folder)
    os.environ["PYTHONPATH"] = f"{folder / 'src'}:{folder}"
    sys.path[:0] = [f"{folder / 'src'}", f"{folder}"]


def _run_tests(mutant: Mutant, timeout: float) -> tuple[bool, float]:
    """Whether the tests pass with the changed module in place, and the seconds that they took."""
    path = Path("src/refit", *mutant.module.split(".")).with_suffix(".py")
    original, started = path.read_text(), time.monotonic()
    path.write_text(mutant.source)
    # A fork, as importing torch takes longer than most tests.
    process = multiprocessing.get_context("fork").Process(target=_run_pytest, args=(mutant.module,))
    process.start()
    process.join(timeout)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # the tests, and what they started and left behind
    process.join()
    path.write_text(original)
    return process.exitcode == 0, time.monotonic() - started


class FastestFirst:
    """Lets tests run in the order of how long they took the first time, when nothing was changed."""

    def __init__(self, path: Path) -> None:
        self.path, self.durations = path, Counter[str]()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self.path.exists():
            known = json.loads(self.path.read_text())
            items.sort(key=lambda item: known.get(item.nodeid, 0))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.durations[report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        if not self.path.exists():
            self.path.write_text(json.dumps(self.durations))


def _run_pytest(module: str) -> None:
    os.setsid()
    with open(os.devnull, "w") as nowhere:
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)
    files = [f"tests/refit/{name}.py" for name in TESTS[module]]
    folder = tempfile.mkdtemp(dir=os.environ["MUTANTS"])  # a new one, as pytest takes long to clear those of the runs before
    plugins = [FastestFirst(Path(os.environ["MUTANTS"], module))]
    # What noticed the change before may notice this one.
    options = ["-p", "pytest_timeout", "-x", "--failed-first", "-m", "not slow", f"--basetemp={folder}"]
    os._exit(pytest.main([*options, *files], plugins))


def _run_module(module: str, given: argparse.Namespace, pool: ProcessPoolExecutor) -> tuple[int, int]:
    """Test mutants of a module, print what survives, and count: all that are no equivalents, and those that survive."""
    source = Path(ROOT, "src/refit", *module.split(".")).with_suffix(".py").read_text()
    mutants = list_mutants(module, source)
    equivalent = tomllib.loads(EQUIVALENT.read_text()).get(module, {})
    for name in equivalent.keys() - {mutant.name for mutant in mutants}:
        print(f"  {EQUIVALENT.name} names a change of {module} that is made no more: {name}", flush=True)
    mutants = [mutant for mutant in mutants if mutant.name not in equivalent and given.match in mutant.name]
    if 0 < given.per_module < len(mutants):
        mutants = random.Random(given.seed).sample(mutants, given.per_module)
    passes, seconds = pool.submit(_run_tests, Mutant(module, "none", source), 600).result()
    if not passes:
        sys.exit(f"{module}: expected {TESTS[module]} to pass without a change, found that they fail; run them to see why")
    survivors, started = [], time.monotonic()
    for mutant, (survives, _) in zip(mutants, pool.map(partial(_run_tests, timeout=3 * seconds + 20), mutants), strict=True):
        if survives:
            survivors.append(mutant)
            print(f"  survives: {mutant.name}", flush=True)
    spent = time.monotonic() - started
    print(f"{module}: {len(survivors)} of {len(mutants)} survive, {len(equivalent)} equivalent, {spent:.0f} s", flush=True)
    return len(mutants), len(survivors)


def main() -> int:
    """Test mutants of the modules that are asked for; 1 if too many survive."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="*", help=f"of {', '.join(TESTS)}; all by default")
    parser.add_argument("--per-module", type=int, default=50, help="mutants of each module, 0 for all; 50 by default")
    parser.add_argument("--match", default="", help="only mutants with this in their name, such as a function")
    parser.add_argument("--seed", type=int, default=0, help="decides which")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    names = {name.rpartition(".")[2]: name for name in TESTS} | {name: name for name in TESTS}
    if unknown := [module for module in given.modules if module not in names]:
        parser.error(f"expected modules of {', '.join(TESTS)}, found {', '.join(unknown)}")
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    sys.dont_write_bytecode = True
    for package in ("matplotlib.pyplot", "polars", "pydantic_settings", "torch", "torchmetrics"):
        importlib.import_module(package)  # once, for all forks
    counts = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        os.environ["MUTANTS"] = folder
        fork = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(given.processes, mp_context=fork, initializer=_copy_tree) as pool:
            for module in dict.fromkeys(names[module] for module in given.modules or TESTS):
                counts.append(_run_module(module, given, pool))
    made, surviving = map(sum, zip(*counts, strict=True))
    print(f"{surviving} of {made} survive, {surviving / made:.1%}; at most {MAX_SURVIVING:.0%} should")
    return int(surviving > MAX_SURVIVING * made)


if __name__ == "__main__":
    sys.exit(main())
