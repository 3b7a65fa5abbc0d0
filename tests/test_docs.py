"""README and the pages of `docs` against the code: commands, flags and settings are there, and the marked examples run.

A mark is an HTML comment above a fenced block. `<!-- run -->` runs the block, `<!-- file NAME -->` writes it into a file, and
`<!-- output -->` says that the run before prints these lines, `…` being anything. `<!-- run COMMAND -->` needs no block. The blocks
of a page run in their order, in a folder of their own with `penguins.csv`.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL

from refit.commands.cli import app
from refit.settings import SettingsTree, walk_settings

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = r"<!-- (?P<mark>run|output|file (?P<file>\S+)) -->\n+```(?P<language>\w*)\n(?P<block>.*?)\n```$"
MARKED = re.compile(rf"<!-- run (?P<command>\w[^\n]*) -->$|{BLOCK}", re.DOTALL | re.MULTILINE)
TABLE = ROOT / "examples" / "penguins.csv"
TIMEOUT_SECONDS = 300
EPOCHS = {"REFIT_TRAINING__EPOCHS_PER_TASK": "20", "REFIT_COMPUTE__NUM_THREADS": "1"}
"""Less time for the same weights."""
SHELLS = {"sh": ["bash", "-euo", "pipefail"], "python": [sys.executable, "-"]}


def name_page(page: Path) -> str:
    return str(page.relative_to(ROOT))


def find_all(pattern: str) -> dict[str, str]:
    """What a pattern finds in the pages, with a page that has it."""
    return {found: name_page(page) for page in PAGES for found in re.findall(pattern, page.read_text(), flags=re.MULTILINE)}


def test_every_make_command_has_a_target():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    commands = find_all(r"(?:^|`)make ([\w-]+)")
    assert {name: page for name, page in commands.items() if name not in targets} == {}
    assert "train" in commands


def test_every_refit_command_is_there():
    commands = find_all(r"(?:^|`|&& )refit ([a-z]+)")
    assert {name: page for name, page in commands.items() if name not in list(app)} == {}
    assert "train" in commands


def test_every_command_has_its_place_in_the_reference():
    text = (ROOT / "docs" / "reference" / "commands.md").read_text()
    assert [name for name in app if not name.startswith("-") and f"`refit {name}" not in text] == []


def test_every_flag_and_every_setting_in_code_spans_is_a_setting():
    settings, sections = dict(walk_settings(SettingsTree())), SettingsTree.model_fields
    named = find_all(r"--(\w+\.\w+)") | find_all(rf"`((?:{'|'.join(sections)})\.[a-z_]+)`")
    assert {name: page for name, page in named.items() if name not in settings and name not in FILES} == {}
    assert "optimizer.lr" in named


FILES = {"model.pt", "model.onnx"}
"""That are named like settings."""


def test_every_variable_is_a_setting():
    settings = [name.replace(".", "__").upper() for name, _ in walk_settings(SettingsTree())]
    variables = find_all(r"REFIT_([A-Z_]+)")
    assert {name: page for name, page in variables.items() if name not in settings} == {}
    assert variables


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_every_toml_block_is_a_settings_file(page):
    for block in re.findall(r"^```toml\n(.*?)```", page.read_text(), flags=re.DOTALL | re.MULTILINE):
        SettingsTree.model_validate(tomllib.loads(block))


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if "<!-- run" in page.read_text()], ids=name_page)
def test_the_examples_of_a_page_run(page, tmp_path, prefect_database, prefect_server):  # noqa: ARG001
    for copy in (tmp_path / "project" / TABLE.name, tmp_path / "project" / "examples" / TABLE.name):
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(TABLE, copy)
    (tmp_path / "prefect").mkdir()
    shutil.copy(prefect_database, tmp_path / "prefect" / "prefect.db")
    environment = make_environment(tmp_path / "prefect")
    if page.stem != "README":  # its commands start a server each, as those of most people do
        environment["PREFECT_API_URL"] = PREFECT_API_URL.value()
    run_page(page.read_text(), tmp_path / "project", environment)


def make_environment(prefect_home: Path) -> dict[str, str]:
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "REFIT_", "COV_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{mine['PATH']}"
    return {**mine, **EPOCHS, "PATH": path, "PREFECT_HOME": str(prefect_home)}


def run_page(text: str, folder: Path, environment: dict[str, str]) -> None:
    printed = ""
    for found in MARKED.finditer(text):
        command, mark, block = found["command"], found["mark"], found["block"]
        if found["file"]:
            (folder / found["file"]).write_text(block + "\n")
        elif mark == "output":
            assert list(find_missing(block, printed)) == [], printed
        else:
            shell, code = (SHELLS["sh"], command) if command else (SHELLS[found["language"]], block)
            done = subprocess.run(
                shell, input=code, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
            )
            printed = done.stdout + done.stderr
            assert done.returncode == 0, f"{code}\n{printed}"


def find_missing(expected: str, printed: str) -> Iterator[str]:
    """The lines that are expected, but not printed."""
    for line in filter(str.strip, expected.splitlines()):
        pattern = ".*".join(re.escape(part.strip()) for part in line.split("…"))
        if not re.search(rf"^\s*{pattern}\s*$", printed, flags=re.MULTILINE):
            yield line
