"""Refit beside a project that has `flows` and `tasks` of its own: from a wheel or editable, in a terminal or under a worker."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from servers import ROOT, TIMEOUT_SECONDS, Site, wait_for

from refit.server.project import name_pool

pytestmark = pytest.mark.slow

LAYERS = "from torch import nn\n\n\ndef stack(i, o):\n    return nn.Sequential(nn.Linear(i, 8), nn.ReLU(), nn.Linear(8, o))\n"
BUILD = """
from pathlib import Path


def build(num_inputs, num_outputs):
    import flows
    import tasks

    Path("seen.txt").write_text(f"{flows.__file__} {tasks.__file__}")
    return stack(num_inputs, num_outputs)
"""
PROJECTS = {
    "packages": {  # with modules that are named like Refit's
        "flows/__init__.py": "",
        "flows/training.py": "from tasks.training import stack\n",
        "flows/networks.py": f"from flows.training import stack\n{BUILD}",
        "tasks/__init__.py": "",
        "tasks/training.py": LAYERS,
    },
    "modules": {"flows.py": "", "tasks.py": f"{LAYERS}\n{BUILD}"},
}
FACTORIES = {"packages": "flows.networks:build", "modules": "tasks:build"}
NOTEBOOK = """
import flows, tasks
import refit
from refit.flows.training import train
from refit.settings import SettingsTree

result = refit.train(SettingsTree(name="notebook"))
print(flows.__file__, tasks.__file__, refit.__file__, train.name, result.model.reference)
"""


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> Path:
    """A folder with sdist and wheel, built from the tree."""
    return build(ROOT, tmp_path_factory.mktemp("archives"), "sdist", "wheel")


@pytest.fixture(scope="module")
def install(tmp_path_factory) -> Callable[..., Path]:
    """Install what pip is told into an environment that has all other packages of this one; the folder of its commands."""

    def run(*what: str) -> Path:
        folder = tmp_path_factory.mktemp("environment")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        (packages,) = folder.glob("lib/*/site-packages")
        packages.joinpath("others.pth").write_text(sysconfig.get_path("purelib"))  # whose own `.pth` files are not read
        flags = ("--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--ignore-installed")
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", *flags, *what], check=True, env=clean(os.environ))
        return folder / "bin"

    return run


@pytest.fixture(scope="module")
def commands(request, archives, install) -> tuple[Path, Path]:
    """The folder of the commands, and where the code is that they should run."""
    if request.param == "editable":
        return install("--editable", str(ROOT)), ROOT / "src" / "refit"
    found = install(*map(str, archives.glob("*.whl")))
    (package,) = found.parent.glob("lib/*/site-packages/refit")
    return found, package


@pytest.fixture
def project(request, tmp_path) -> Path:
    folder = tmp_path / request.param
    for name, text in PROJECTS[request.param].items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    shutil.copy(ROOT / "examples" / "penguins.csv", folder)
    (folder / "refit.toml").write_text(
        'name = "guest"\n[data]\nsource = "penguins.csv"\ntarget = "species"\n[training]\nnum_epochs = 2\n'
        f'[model]\nfactory = "{FACTORIES[request.param]}"\n'
    )
    return folder


def build(tree: Path, folder: Path, *kinds: str) -> Path:
    for kind in kinds:
        subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", folder], cwd=tree, check=True)
    return folder


def clean(environment) -> dict[str, str]:
    """Without what points to the code under test."""
    return {name: value for name, value in environment.items() if name != "PYTHONPATH"}


def read_wheel(folder: Path) -> dict[str, int]:
    """What the wheel in a folder holds, with checksums."""
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        return {entry.filename: entry.CRC for entry in wheel.infolist()}


def find_theirs(project: Path) -> str:
    """Where the project has its `flows` and its `tasks`."""
    return " ".join(str(next(project.glob(f"{name}.py"), project / name / "__init__.py")) for name in ("flows", "tasks"))


def test_the_wheel_has_one_top_level_name_and_holds_flows_tasks_deployments_and_licence(archives):
    names = [*read_wheel(archives)]
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"refit"}
    assert len([name for name in names if name.endswith(".dist-info/licenses/LICENSE")]) == 1
    for folder in ("flows", "tasks"):
        expected = {f"refit/{folder}/{path.name}" for path in (ROOT / folder).glob("*.py")}
        assert {name for name in names if name.startswith(f"refit/{folder}/")} == expected
    assert {"refit/server/prefect.yaml", "refit/py.typed"} < {*names}


def test_a_wheel_built_from_the_sdist_is_the_same(archives, tmp_path):
    (path,) = archives.glob("*.tar.gz")
    with tarfile.open(path) as sdist:
        sdist.extractall(tmp_path, filter="data")
    (tree,) = tmp_path.iterdir()
    assert read_wheel(build(tree, tmp_path / "again", "wheel")) == read_wheel(archives)


@pytest.mark.parametrize(("commands", "project"), [("wheel", "packages"), ("editable", "modules")], indirect=True)
def test_in_a_terminal_each_gets_its_own(site: Site, commands, project):
    bin_folder, package = commands
    environment = clean(site.environment)
    trained = subprocess.run(
        [bin_folder / "refit", "train"], cwd=project, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
    )
    assert trained.returncode == 0, trained.stderr
    assert (project / "seen.txt").read_text() == find_theirs(project)
    shown = subprocess.run(
        [bin_folder / "python", "-"], input=NOTEBOOK, cwd=project, env=environment, capture_output=True, text=True, check=True
    )
    assert shown.stdout.splitlines()[-1] == f"{find_theirs(project)} {package / '__init__.py'} train notebook@v1"


@pytest.mark.parametrize(("commands", "project"), [("wheel", "modules"), ("editable", "packages")], indirect=True)
def test_under_a_server_and_a_worker_each_gets_its_own(site: Site, commands, project):
    bin_folder, _ = commands
    environment, name = (
        clean(site.environment),
        f"guest-{project.name}-{'editable' if commands[1].is_relative_to(ROOT) else 'wheel'}",
    )
    deployed = subprocess.run(
        [bin_folder / "refit", "deploy", "--name", name],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )
    assert deployed.returncode == 0, deployed.stderr
    start = [bin_folder / "python", "-P", "-m", "prefect", "worker", "start", "--pool", name_pool(project), "--type", "process"]
    worker = subprocess.Popen(start, cwd=project, env={**environment, "PROJECT_FOLDER": str(project)}, start_new_session=True)
    site.processes.append(worker)
    try:
        site.start_run(f"train/{name}", {})
        (run,) = wait_for(lambda: site.list_runs(f"train/{name}"))
    finally:
        site.kill(worker)
    assert run["state_type"] == "COMPLETED", run["state"]
    assert (project / "seen.txt").read_text() == find_theirs(project)
    assert (project / "refit-store" / "models" / name / "v1").is_dir()
