"""README against the code: its settings table, its map, its commands.

`python tests/test_readme.py` writes the settings table anew.
"""

import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from refit.settings import Section, SettingsTree, describe_field, walk_settings

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
FLOORS = ("src/refit", "tasks", "flows")


def test_the_settings_table_is_the_settings_tree():
    assert read_section("settings") == render_settings(), "run `python tests/test_readme.py`"


def test_the_map_names_every_module_and_no_other():
    modules = {str(path.relative_to(ROOT)) for floor in FLOORS for path in (ROOT / floor).rglob("*.py")}
    assert {path for path in walk_map() if path.endswith(".py")} == modules


def test_the_map_names_nothing_that_is_not_there():
    assert [path for path in walk_map() if not (ROOT / path).exists()] == []


def test_every_make_command_has_a_target():
    commands = set(re.findall(r"(?:^|`)make (\w+)", README.read_text(), flags=re.MULTILINE))
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert commands
    assert commands <= targets


def test_every_flag_is_a_setting():
    flags = set(re.findall(r"--(\w+\.\w+)", README.read_text()))
    assert flags
    assert flags <= {name for name, _ in walk_settings(SettingsTree())}


def test_the_table_of_speed_is_that_of_the_results():
    report = runpy.run_path(str(ROOT / "benchmarks" / "speed_report.py"))
    results = json.loads((ROOT / "benchmarks" / "results" / "speed.json").read_text())
    assert read_section("speed") == report["render_section"](results).strip()


def read_section(name: str) -> str:
    match = re.search(section_pattern(name), README.read_text(), flags=re.DOTALL)
    assert match, f"README has no section between <!-- {name} --> and <!-- /{name} -->"
    return match[2].strip()


def section_pattern(name: str) -> str:
    return rf"(<!-- {name} -->\n)(.*?)(\n<!-- /{name} -->)"


def walk_map() -> Iterator[str]:
    """Paths of the map: two spaces of indentation a level, folders end in a slash."""
    folders: list[str] = []
    for line in read_section("map").splitlines():
        if line.startswith("```"):
            continue
        name = line.split()[0]
        folders[(len(line) - len(line.lstrip())) // 2 :] = [name]
        yield "".join(folders)


def render_settings() -> str:
    rows = [
        f"| `{name}` | `{render_default(default)}` | {describe_field(field)} |"
        for name, field, default in walk_fields(SettingsTree())
    ]
    return "\n".join(["| setting | default | meaning |", "| --- | --- | --- |", *rows])


def walk_fields(tree: Section, prefix: str = "") -> Iterator[tuple[str, FieldInfo, Any]]:
    for name, field in type(tree).model_fields.items():
        default = getattr(tree, name)
        if isinstance(default, Section):
            yield from walk_fields(default, f"{prefix}{name}.")
        else:
            yield prefix + name, field, default


def render_default(value: Any) -> str:
    """As it is written on the command line."""
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)


if __name__ == "__main__":
    table = render_settings()
    README.write_text(
        re.sub(section_pattern("settings"), lambda match: match[1] + table + match[3], README.read_text(), flags=re.DOTALL)
    )
