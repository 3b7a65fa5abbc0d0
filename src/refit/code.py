"""Digests of the code that results depend on. They are made from syntax trees, so comments, layout and docstrings do not count."""

import ast
import contextlib
import hashlib
import importlib.util
import os
import sys
import sysconfig
import threading
import time
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

from refit.errors import SettingsError

SESSION = "session"
"""Stands for the module of objects that a notebook gives, which cannot be imported by a name."""
session_digests: dict[str, str] = {}
"""Digests of the code of such objects, by their names."""
PACKAGES = {"site-packages", "dist-packages"}
"""Names of folders with installed packages."""
STANDARD_LIBRARY = sysconfig.get_path("stdlib")
TRIES = 10
_parsing = threading.Lock()
_changing_path = threading.Lock()


@contextlib.contextmanager
def importing_from_here() -> Iterator[None]:
    """Allow imports from the working directory, which may hold the user's own modules. Installed modules come first.

    Outside this block it is not on the import path: an installed package must not import a `torchvision.py` from there.
    """
    folder = os.getcwd()
    with _changing_path:
        sys.path.append(folder)
    try:
        yield
    finally:
        with _changing_path:  # the last such entry is this one, or an equal one of another thread
            del sys.path[len(sys.path) - 1 - sys.path[::-1].index(folder)]


def digest_code(modules: Iterable[str]) -> dict[str, str]:
    """Digest each function, class and constant of some of Refit's modules, by `code.` and its name.

    The module of a definition does not count, so that moved code keeps its digests.
    """
    digests = dict[str, list[str]]()
    for module in modules:  # they are read, not imported, which would import torch
        path = _find_own(module)
        for name, digest in _digest_definitions(path.read_bytes(), str(path)):
            digests.setdefault(f"code.{name}", []).append(digest)
    return {name: found[0] if len(found) == 1 else _hash(" ".join(sorted(found))) for name, found in sorted(digests.items())}


def list_modules(module: str) -> list[str]:
    """List a module of Refit and, at any depth, those of the same room that it imports; none if there is no file of it."""
    room, found, pending = module.rpartition(".")[0], set[str](), [module]
    while pending:
        name = pending.pop()
        path = _find_own(name)
        if name not in found and name.startswith(f"{room}.") and path.is_file():
            found.add(name)
            pending += _list_imports(path.read_bytes(), name, is_package=False)
    return sorted(found)


def digest_user_code(function: str | None, setting: str = "model.factory") -> dict[str, str]:
    """Digest a user's module and the modules that it imports, at any depth, by `code.` and their names. None of them is run.

    An installed package is represented by its version, under its name. Imports by a computed name are not found.

    Args:
        function: `package.module:function`; None gives an empty result.
        setting: What names it.

    Raises:
        SettingsError: The module has no Python source, or a source is not valid Python.
    """
    if function is None:
        return {}
    module = function.partition(":")[0]
    if module == SESSION:
        return {f"code.{function}": session_digests.get(function, "")}
    importlib.invalidate_caches()
    digests, versions, seen, pending = dict[str, str](), dict[str, str](), set[str](), [module]
    while pending:
        name = pending.pop()
        package = name.partition(".")[0]
        if name in seen or (package == "refit" and name != module):  # Refit's computing code counts anyway
            continue
        seen.add(name)
        path = _locate(name)
        if path is not None and name != module and not PACKAGES.isdisjoint(path.parts):
            versions[package] = _find_version(package)
        elif path is not None and path.suffix == ".py" and (name == module or not path.is_relative_to(STANDARD_LIBRARY)):
            source = path.read_bytes()
            digests[f"code.{name}"] = _digest_source(source, str(path))
            pending += _list_imports(source, name, path.name == "__init__.py")
        elif name == module:
            raise SettingsError(
                f"{setting}: expected a module with Python source, to notice changes, found none for {module!r}; "
                "give package.module:function, from the working directory or installed"
            )
        pending.append(name.rpartition(".")[0] or name)
    return {**digests, **versions}


def _find_own(module: str) -> Path:
    """Where a module of Refit is."""
    return Path(__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")


def _locate(module: str) -> Path | None:
    """Find the file of a module, if it exists, without importing its parent packages."""
    package, *parts = module.split(".")
    if package == "__main__":  # it depends on how the process was started
        return None
    try:
        with importing_from_here():
            found = importlib.util.find_spec(package)
    except ValueError:  # the module was not imported from a file
        return None
    if found is None:
        return None
    if not parts:
        return Path(found.origin) if found.has_location and found.origin else None
    folders = [Path(folder, *parts) for folder in found.submodule_search_locations or ()]
    candidates = [path for folder in folders for path in (folder / "__init__.py", folder.with_suffix(".py"))]
    return next(filter(Path.is_file, candidates), None)


@cache
def _list_imports(source: bytes, module: str, is_package: bool) -> list[str]:
    """List the modules that a module's source imports, and imported names that may be modules."""
    package, names = module if is_package else module.rpartition(".")[0], list[str]()
    for node in ast.walk(_parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*parents, *filter(None, [node.module])])
            names += [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")) and node.args:
            # Skips a name that is computed, or relative outside of a package.
            with contextlib.suppress(AttributeError, ImportError, ValueError):
                names.append(importlib.util.resolve_name(ast.literal_eval(node.args[0]), package))
    return names


@cache
def _find_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # its distribution has another name
        return ", ".join(f"{name} {version(name)}" for name in sorted({*_list_distributions().get(package, [])}))


_list_distributions = cache(packages_distributions)  # it takes a second


@cache
def _digest_definitions(source: bytes, path: str) -> list[tuple[str, str]]:
    """List name and digest of each definition in a module of Refit, and of its imports from other packages."""
    found = []
    for node in _without_docstrings(_parse(source, path)).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            origin = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            if not origin.startswith("refit"):
                found += [("imports", _hash(f"{origin} {alias.name} {alias.asname}")) for alias in node.names]
            continue
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            name = node.name
        else:
            name = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", node)).strip("()")
        found.append((name, _hash(ast.dump(node))))
    return found


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _digest_source(source: bytes, path: str) -> str:
    try:
        tree = _parse(source, path)
    except SyntaxError as error:
        raise SettingsError(f"model.factory: expected a module that can be imported, found {path}: {error}; correct it") from error
    return _hash(ast.dump(_without_docstrings(tree)))


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [statement for statement in node.body if not _is_docstring(statement)]
    return tree


def _parse(source: bytes, path: str = "") -> ast.Module:
    """Parse source. Try again if parsing fails because another thread parses at the same time, as it can in CPython 3.11.

    Threads that fail together would fail together again. So Refit's threads take turns, and others get time to finish.
    """
    with _parsing:
        for attempt in range(1, TRIES):
            with contextlib.suppress(SystemError):
                return ast.parse(source, path)
            time.sleep(0.01 * attempt)
        return ast.parse(source, path)


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str)
