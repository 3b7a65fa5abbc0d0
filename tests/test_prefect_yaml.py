"""`prefect.yaml` against Prefect's own models of it, since `prefect deploy` ignores keys that it does not know."""

import copy
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from prefect.cli.deploy._models import PrefectYamlModel
from prefect.client.schemas.schedules import CronSchedule
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.importtools import import_object
from prefect.workers.process import ProcessWorker
from pydantic import BaseModel

ROOT = Path(__file__).parents[1]
DOCUMENT = yaml.safe_load((ROOT / "prefect.yaml").read_text())
DEPLOYMENTS = {entry["name"]: entry for entry in DOCUMENT["deployments"]}


def list_unknown_keys(value: Any, models: list[type[BaseModel]], where: str = "") -> list[str]:
    """The keys that no model has; where several models would do, those that the best of them lacks."""
    if isinstance(value, list):
        return [key for index, item in enumerate(value) for key in list_unknown_keys(item, models, f"{where}[{index}]")]
    if not isinstance(value, dict) or not models:
        return []
    unknown_by_model = []
    for model in models:
        model.model_rebuild()  # until then, some annotations are texts
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        unknown = [f"{where}.{key}" for key in value if key not in fields]
        for key in value.keys() & fields.keys():
            unknown += list_unknown_keys(value[key], [*find_models(fields[key].annotation)], f"{where}.{key}")
        unknown_by_model.append(unknown)
    return min(unknown_by_model, key=len)


def find_models(annotation: Any) -> Iterator[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from find_models(inner)


def test_prefect_knows_every_key():
    assert list_unknown_keys(DOCUMENT, [PrefectYamlModel]) == []


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ((), "pulls"),
        (("deployments", 0), "entry_point"),
        (("deployments", 0, "work_pool"), "job_variable"),
        (("deployments", 1, "schedules", 0), "crons"),
        (("deployments", 1, "schedules", 0), "time_zone"),
    ],
)
def test_a_key_that_prefect_would_ignore_is_found(path, key):
    document = copy.deepcopy(DOCUMENT)
    section = document
    for part in path:
        section = section[part]
    section[key] = "x"
    found = list_unknown_keys(document, [PrefectYamlModel])  # more than one, where a YAML anchor repeats it
    assert found
    assert all(name.endswith(f".{key}") for name in found)


def test_the_file_of_the_repository_is_that_of_the_package():
    """`refit deploy` reads the one that is installed with it."""
    assert (ROOT / "prefect.yaml").resolve() == ROOT / "src/refit/server/prefect.yaml"


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_deployment_names_a_flow_by_its_module(name):
    entrypoint = DEPLOYMENTS[name]["entrypoint"]
    assert re.fullmatch(r"refit\.flows\.\w+:\w+", entrypoint)
    assert load_flow_from_entrypoint(entrypoint).name == entrypoint.partition(":")[2]
    assert name == entrypoint.partition(":")[2]


def test_no_path_of_the_deploying_machine_is_in_it():
    assert not re.search(r"(?<![\w:/*])[~/][\w/]", re.sub(r"#.*", "", (ROOT / "prefect.yaml").read_text()))


def test_pull_steps_can_be_called_as_they_are_written():
    for step in DOCUMENT["pull"]:
        for function, arguments in step.items():
            inspect.signature(import_object(function)).bind(**arguments)


def test_job_variables_are_those_of_a_process_worker():
    known = ProcessWorker.get_default_base_job_template()["variables"]["properties"]
    for entry in DEPLOYMENTS.values():
        assert entry["work_pool"]["job_variables"].keys() <= known.keys()


def test_retraining_is_planned_in_a_time_zone():
    retraining = DEPLOYMENTS["retrain"]
    assert [CronSchedule(**schedule).cron for schedule in retraining["schedules"]] == ["0 3 * * *"]
    assert all(schedule["timezone"] for schedule in retraining["schedules"])
    assert not any(entry.get("schedules") for name, entry in DEPLOYMENTS.items() if name != "retrain")
