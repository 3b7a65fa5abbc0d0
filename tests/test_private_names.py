"""The table of private names in CONTRIBUTING against the code: names of other packages that begin with an underscore."""

import ast
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parents[1]
PRIVATE = re.compile(r"(?<![a-zA-Z0-9])_+(?!\w*__\b)[a-z]\w*")
INSIDE = re.compile(r"prefect\.(?:server|cli|utilities|_\w+)\b[\w.]*")
"""Modules of Prefect that its users have no business in."""


def test_the_table_of_private_names_is_what_the_code_uses():
    assert sorted(read_table()) == sorted(find_names())


def test_prefects_insides_are_used_where_the_table_says():
    expected = sorted(read_table(INSIDE))
    found = sorted(
        (f"{node.module}.{alias.name}", path)
        for path, tree in read_trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and INSIDE.fullmatch(node.module or "")
        for alias in node.names
    )
    assert found == expected
    assert {path for _, path in found} == {"server/sqlite_server.py", "undocumented.py"}


def read_table(names: re.Pattern[str] = PRIVATE) -> set[tuple[str, str]]:
    """Private names and the files that they are used in."""
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("\n## Private names\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("| `")]
    assert all(len(row) == 4 and all(row) for row in rows)
    return {(name, path) for words, paths, *_ in rows for name in names.findall(words) for path in re.findall("`(.+?)`", paths)}


def find_names() -> set[tuple[str, str]]:
    """The same in the code: of all private names, those that are not defined there."""
    trees = read_trees()
    nodes = list(chain.from_iterable(map(ast.walk, trees.values())))
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    own = {name for node in nodes for name in list_defined(node, used)}
    return {(name, path) for path, tree in trees.items() for node in ast.walk(tree) for name in list_used(node) if name not in own}


def read_trees() -> dict[str, ast.Module]:
    """The code, by its files."""
    trees = {}
    for floor in ("src/refit", "flows", "tasks"):
        for path in sorted((ROOT / floor).rglob("*.py")):
            trees[str(path.relative_to(ROOT)).removeprefix("src/refit/")] = ast.parse(path.read_text())
    return trees


def list_defined(node: ast.AST, used: set[str]) -> Iterator[str]:
    """Names that a node defines; a method that nothing of ours calls overrides another's."""
    if isinstance(node, ast.ClassDef):
        functions = [it for it in node.body if isinstance(it, ast.FunctionDef)]
        yield from (it.name for it in functions if it.name in used or it.decorator_list)
    elif isinstance(node, ast.Module):
        yield from (it.name for it in node.body if isinstance(it, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef))
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        for target in chain.from_iterable(map(ast.walk, node.targets if isinstance(node, ast.Assign) else [node.target])):
            if isinstance(target, ast.Name):
                yield target.id
            elif isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self":
                yield target.attr


def list_used(node: ast.AST) -> list[str]:
    """Private names that a node mentions, those in text included."""
    text = ""
    if isinstance(node, ast.ImportFrom | ast.Import) and not ast.unparse(node).startswith("from refit"):
        text = ast.unparse(node).partition(" as ")[0]
    elif isinstance(node, ast.Attribute) and ast.unparse(node) != "os._exit":
        text = node.attr
    elif isinstance(node, ast.keyword):
        text = node.arg or ""
    elif isinstance(node, ast.FunctionDef):
        text = node.name
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[\w.]+", node.value):
        text = node.value
    return PRIVATE.findall(text)
