import ast
import contextlib
import gc
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import pytest

from refit import code
from refit.code import digest_code, digest_user_code, importing_from_here
from refit.errors import SettingsError
from refit.store import store

CODE = '''"""What this module is."""

import math


class Scale:
    """Twice."""

    factor = 2.0

    def apply(self, x):
        """Apply it."""
        return self.factor * math.sqrt(x)  # the root
'''


def test_modules_of_the_working_directory_are_found_only_in_between_and_after_those_that_are_installed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    with importing_from_here(), importing_from_here():
        assert sys.path == [*before, str(tmp_path), str(tmp_path)]
    assert sys.path == before


def test_a_folder_that_was_on_the_path_stays_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = list(sys.path)
    with importing_from_here():
        pass
    assert sys.path == before


@pytest.fixture
def digest(tmp_path, monkeypatch):
    """The digest of a module with this code."""
    monkeypatch.syspath_prepend(tmp_path)

    def find(code: str) -> str:
        Path(tmp_path / "keyed_networks.py").write_text(code)
        return digest_user_code("keyed_networks")["code.keyed_networks"]

    return find


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# the root", "# another word"),
        ("  # the root", ""),
        ('"""Twice."""', '"""Two times.\n\n    And more.\n    """'),
        ('    """Twice."""\n\n', ""),
        ('"""What this module is."""\n', ""),
        ('"""What this module is."""', '"""Something else."""'),
        ("\n\n\nclass", "\nclass"),
        ("self.factor * math.sqrt(x)", "(\n            self.factor*math.sqrt( x )\n        )"),
        ("    ", "  "),
    ],
)
def test_comments_docstrings_and_layout_leave_the_digest_of_code_as_it_is(digest, old, new):
    assert old in CODE
    assert digest(CODE.replace(old, new)) == digest(CODE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("2.0", "2.5"),
        ("2.0", "2"),
        ("*", "+"),
        ("math.sqrt(x)", "math.sqrt(+x)"),
        ("return ", ""),
        ("def apply(self, x)", "def apply(self, x=1)"),
        ("import math", "import math\nimport os"),
        ("    factor = 2.0", '    factor = "Twice."'),
        ("class Scale:", "@print\nclass Scale:"),
    ],
)
def test_another_expression_is_another_digest(digest, old, new):
    assert old in CODE
    assert digest(CODE.replace(old, new)) != digest(CODE)


PACKAGE = {
    "networks/__init__.py": "from .blocks import *\n",
    "networks/wide.py": (
        "import refit.models, tables, os, json.decoder\nfrom torch import nn\nfrom networks.parts import gate\nclass Net: ...\n"
    ),
    "networks/blocks.py": "def block():\n    from ..beyond import nothing\n    from . import sizes\n",
    "networks/sizes.py": "from __main__ import x\nimportlib.import_module(name)\nimportlib.import_module('.late', __package__)\n",
    "networks/late.py": "",
    "networks/parts/gate.py": "import networks.wide\nfrom . import scale\n",
    "networks/parts/scale.py": "try:\n    import absent\nexcept ImportError:\n    import polars.dataframe as pl\n",
    "networks/unused.py": "",
    "tables.py": "from sklearn.base import BaseEstimator as networks\n",
}
USED = {
    "networks",
    "networks.wide",
    "networks.blocks",
    "networks.sizes",
    "networks.late",
    "networks.parts.gate",
    "networks.parts.scale",
    "tables",
}


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A folder of modules that import one another in every way, in and around a package."""
    monkeypatch.syspath_prepend(tmp_path)
    for name, source in PACKAGE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    return tmp_path


def test_all_that_a_module_imports_counts_and_installed_packages_by_their_versions(package):  # noqa: ARG001
    found = digest_user_code("networks.wide")
    assert {name.removeprefix("code.") for name in found if name.startswith("code.")} == USED
    versions = {name: value for name, value in found.items() if not name.startswith("code.")}
    assert versions.keys() == {"torch", "polars", "sklearn"}
    assert versions["torch"] == version("torch")
    assert versions["sklearn"].startswith("scikit-learn 1.")


@pytest.mark.parametrize("name", PACKAGE)
def test_a_change_anywhere_among_them_is_seen_and_nowhere_else(package, name):
    before = digest_user_code("networks.wide")
    (package / name).write_text(PACKAGE[name] + "y = 1\n")
    after = digest_user_code("networks.wide")
    module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    assert {key for key in before if after[key] != before[key]} == {f"code.{module}"} & before.keys()


@pytest.mark.parametrize("module", ["math", "sys", "torch._C", "absent_networks", "absent_networks.deep", "json.absent"])
def test_a_module_without_python_source_is_refused(module):
    message = rf"model\.factory: expected a module with Python source, to notice changes, found none for '{module}'; give"
    with pytest.raises(SettingsError, match=message):
        digest_user_code(module)


@pytest.mark.parametrize("name", ["networks/wide.py", "networks/sizes.py"])
def test_code_that_does_not_parse_is_refused_by_its_path(package, name):
    (package / name).write_text("def build(num_inputs, num_outputs:\n")
    with pytest.raises(
        SettingsError, match=rf"model\.factory: expected a module that can be imported, found .*{name}: .*; correct it"
    ):
        digest_user_code("networks.wide")


def test_code_is_read_and_not_run(package):
    (package / "networks/__init__.py").write_text("1 / 0\n")
    digest_user_code("networks.wide")
    assert "networks" not in sys.modules


def test_threads_may_parse_at_the_same_time():
    """CPython 3.11 counts the depth of all their trees in one place; collected garbage that runs code lets another thread go on."""
    source, until, callback = Path(store.__file__).read_bytes(), time.monotonic() + 2, lambda *_: sum(range(20))

    def parse(depth: int, parser: Callable[[bytes], object], *expected: type[Exception]) -> int:
        if depth:
            return parse(depth - 1, parser, *expected)
        count = 0
        while time.monotonic() < until:
            with contextlib.suppress(*expected):
                parser(source)
                count += 1
        return count

    interval, threshold = sys.getswitchinterval(), gc.get_threshold()
    gc.callbacks.append(callback)
    try:
        sys.setswitchinterval(1e-6)
        gc.set_threshold(50)
        with ThreadPoolExecutor() as threads:
            threads.submit(parse, 1, ast.parse, SystemError)
            assert all(threads.map(parse, (20, 40), (code._parse, code._parse)))
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*threshold)
        gc.callbacks.remove(callback)


HALF = "import math\n\nLIMIT = 2\n\ndef half(x):\n    return x / 2\n"
DOUBLE = "from refit.half import half\nimport numpy as np\n\ndef double(x):\n    return 2 * x\n"


@pytest.fixture
def digest_own(tmp_path, monkeypatch):
    """Digests of Refit's code, if it were these modules."""
    monkeypatch.setattr(code, "__file__", str(tmp_path / "code.py"))

    def find(**modules: str) -> dict[str, str]:
        for name, source in modules.items():
            Path(tmp_path / f"{name}.py").write_text(source)
        return digest_code([f"refit.{name}" for name in modules])

    return find


def test_code_of_refit_is_told_apart_by_function_wherever_it_lies(digest_own):
    before = digest_own(one=HALF, two=DOUBLE)
    assert before.keys() == {"code.LIMIT", "code.double", "code.half", "code.imports"}
    assert digest_own(one=HALF + DOUBLE) == before
    assert digest_own(two=DOUBLE.replace("refit.half import half", "refit.other import half as part"), one=HALF) == before


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("return x / 2", 'return x / 2  # a half\n    """Text."""', set()),
        ("x / 2", "0.5 * x", {"code.half"}),
        ("LIMIT = 2", "LIMIT = 3", {"code.LIMIT"}),
        ("import math", "import cmath as math", {"code.imports"}),
    ],
)
def test_of_refits_code_what_has_changed_is_named(digest_own, old, new, changed):
    before, after = digest_own(one=HALF, two=DOUBLE), digest_own(one=HALF.replace(old, new), two=DOUBLE)
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} == changed


def test_functions_of_one_name_count_together(digest_own):
    before = digest_own(one=HALF, two=HALF)
    assert digest_own(two=HALF, one=HALF) == before
    assert digest_own(one=HALF, two=HALF.replace("/ 2", "// 2"))["code.half"] != before["code.half"]
