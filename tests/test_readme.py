"""Sections that are made from the code: the tables of settings and of speed in `docs/reference`, and the map in CONTRIBUTING.

`python tests/test_readme.py` writes the settings anew, and `python benchmarks/speed_report.py` the speed.
"""

import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from refit.settings import PRESETS, Section, SettingsTree, describe_field, walk_settings

ROOT = Path(__file__).parents[1]
SETTINGS_PAGE, SPEED_PAGE = ROOT / "docs" / "reference" / "settings.md", ROOT / "docs" / "reference" / "speed.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
FLOORS = ("src/refit", "tasks", "flows")
HEADS = "| setting | default | meaning |\n| --- | --- | --- |"


def test_the_settings_tables_are_the_settings_tree():
    assert read_section(SETTINGS_PAGE, "settings") == render_settings(), "run `python tests/test_readme.py`"


def test_the_table_of_presets_is_that_of_the_code():
    assert read_section(SETTINGS_PAGE, "presets") == render_presets(), "run `python tests/test_readme.py`"


def test_the_map_names_every_module_and_no_other():
    paths = [path for floor in FLOORS for path in (ROOT / floor).rglob("*.py")]
    modules = {str(path.relative_to(ROOT)) for path in paths if path.name != "__init__.py"}
    assert {path for path in walk_map() if path.endswith(".py") and not path.endswith("__init__.py")} == modules


def test_the_map_names_nothing_that_is_not_there():
    assert [path for path in walk_map() if not (ROOT / path).exists()] == []


def test_the_table_of_speed_is_that_of_the_results():
    report = runpy.run_path(str(ROOT / "benchmarks" / "speed_report.py"))
    results = json.loads((ROOT / "benchmarks" / "results" / "speed.json").read_text())
    assert read_section(SPEED_PAGE, "speed") == report["render_section"](results).strip()


def read_section(page: Path, name: str) -> str:
    match = re.search(section_pattern(name), page.read_text(), flags=re.DOTALL)
    assert match, f"{page.name} has no section between <!-- {name} --> and <!-- /{name} -->"
    return match[2].strip()


def section_pattern(name: str) -> str:
    return rf"(<!-- {name} -->\n)(.*?)(\n<!-- /{name} -->)"


def walk_map() -> Iterator[str]:
    """Paths of the map: two spaces of indentation a level, folders end in a slash."""
    folders: list[str] = []
    for line in read_section(CONTRIBUTING, "map").splitlines():
        if line.startswith("```"):
            continue
        name = line.split()[0]
        folders[(len(line) - len(line.lstrip())) // 2 :] = [name]
        yield "".join(folders)


def render_settings() -> str:
    """A table for the settings that belong to no section, then one for each section under its heading."""
    fields = type(SettingsTree()).model_fields
    sections = {name: field.default for name, field in fields.items() if isinstance(field.default, Section)}
    rows = {name: "\n".join(render_rows(section, f"{name}.")) for name, section in sections.items()}
    blocks = [
        f"## `{name}`\n\n{str(section.__doc__).splitlines()[0]}\n\n{HEADS}\n{rows[name]}" for name, section in sections.items()
    ]
    top = "\n".join(render_rows(SettingsTree()))
    return "\n\n".join([f"{HEADS}\n{top}", *blocks])


def render_presets() -> str:
    """A row for each setting that a preset has; `plain` has the defaults."""
    defaults = dict(walk_settings(SettingsTree()))
    names = sorted({name for preset in PRESETS.values() for name in preset}, key=[*defaults].index)
    rows = [
        f"| `{name}` | " + " | ".join(f"`{render_default(preset.get(name, defaults[name]))}`" for preset in PRESETS.values()) + " |"
        for name in names
    ]
    heads = f"| setting | {' | '.join(f'`{name}`' for name in PRESETS)} |\n| --- |{' --- |' * len(PRESETS)}"
    return "\n".join([heads, *rows])


def render_rows(tree: Section, prefix: str = "") -> Iterator[str]:
    for name, field, default in walk_fields(tree):
        yield f"| `{prefix}{name}` | `{render_default(default)}` | {describe_field(field)} |"


def walk_fields(tree: Section) -> Iterator[tuple[str, FieldInfo, Any]]:
    """The settings of the tree itself, and none of its sections."""
    for name, field in type(tree).model_fields.items():
        if not isinstance(getattr(tree, name), Section):
            yield name, field, getattr(tree, name)


def render_default(value: Any) -> str:
    """As it is written on the command line."""
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)


if __name__ == "__main__":
    page = SETTINGS_PAGE.read_text()
    for name, text in {"settings": render_settings(), "presets": render_presets()}.items():
        page = re.sub(section_pattern(name), lambda match: match[1] + text + match[3], page, flags=re.DOTALL)  # noqa: B023
    SETTINGS_PAGE.write_text(page)
