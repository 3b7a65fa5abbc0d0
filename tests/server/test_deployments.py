"""Deployments of several projects on one server: each has its own work pool, and none takes another's name."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import prefect
import pytest
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed, Running, Scheduled, Suspended

from refit.server import deployments
from refit.server.api import AWAITING_RESTART, in_states, read_deployed
from refit.server.automations import remove_automations
from refit.server.plans import describe_version
from refit.server.project import name_pool
from refit.settings import resolve_settings

METADATA = "api/collections_data/views/aggregate-worker-metadata.json"

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def project(tmp_path, monkeypatch, refit) -> Iterator[Path]:
    """A folder whose `refit.toml` names the model; what is deployed from it is removed."""

    def read_at_once(client, flow, name, _):  # this server has no scheduler
        return read_deployed(client, flow, name)[0]

    monkeypatch.setattr(deployments, "_await_schedule", read_at_once)
    folder = tmp_path / "Ours, 1"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Path("refit.toml").write_text("name = 'fish'\n[data]\nsource = 'fish.csv'\n")
    yield folder
    monkeypatch.chdir(folder)
    assert refit("deploy", "--remove")[0] == 0


def plan_run(model: str) -> UUID:
    with get_client(sync_client=True) as client:
        return client.create_flow_run_from_deployment(client.read_deployment_by_name(f"retrain/{model}").id).id


def test_deploying_again_does_not_forget_since_when_the_server_has_been_watching(project, refit):  # noqa: ARG001
    def read_triggers(*flags: str) -> dict[str, str]:
        assert refit("deploy", *flags)[0] == 0
        with get_client(sync_client=True) as client:
            found = client.request("POST", "/automations/filter").json()
        return {automation["name"]: automation["trigger"]["id"] for automation in found}

    before = read_triggers()
    assert read_triggers() == before
    after = read_triggers("--promotion.timeout_seconds", "3600")
    assert {name for name in before if before[name] != after[name]} == {"refit: go on without an answer about fish"}


def is_planned(run: UUID) -> bool:
    with get_client(sync_client=True) as client:
        return run in {found.id for found in client.read_flow_runs(flow_run_filter=FlowRunFilter(state=in_states("SCHEDULED")))}


def test_a_pool_is_named_for_the_folder_and_another_for_its_namesake_elsewhere(tmp_path):
    for place in ("a", "b"):
        (tmp_path / place / "My project!").mkdir(parents=True)
    first, second = (name_pool(tmp_path / place / "My project!") for place in ("a", "b"))
    assert re.fullmatch(r"refit-my-project-[0-9a-f]{8}", first)
    assert first != second
    assert re.fullmatch(r"refit-[0-9a-f]{8}", name_pool(Path("/")))


def test_deployments_are_named_for_the_model_of_refit_toml_in_a_pool_of_the_folder(refit, project):
    code, out, err = refit("deploy", "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert [entry["name"] for entry in told["deployments"]] == ["train/fish", "retrain/fish", "predict/fish"]
    assert told["pool"] == name_pool(project)
    assert told["worker"] == f"PROJECT_FOLDER=$PWD prefect worker start --pool {told['pool']}"
    with get_client(sync_client=True) as client:
        found = {flow: client.read_deployment_by_name(f"{flow}/fish") for flow in ("train", "retrain", "predict")}
    assert {deployment.work_pool_name for deployment in found.values()} == {told["pool"]}
    assert all(deployment.tags == ["refit"] for deployment in found.values())
    assert found["retrain"].parameters == {"settings": {"name": "fish"}}
    assert found["predict"].parameters == {"settings": {"name": "fish"}, "model": "fish"}


def test_flags_say_what_the_deployments_have_and_no_folder_of_this_machine_is_in_them(refit, project, monkeypatch):
    monkeypatch.setenv("PROJECT_FOLDER", str(project))
    scoring = ("--predict-source", "new.csv", "--predict-output", "scores.parquet", "--predict-cron", "0 5 * * *")
    where = ("--queue", "night", "--job-variables", '{"working_dir": "/data", "env": {"CUDA_VISIBLE_DEVICES": "0"}}')
    more = ("--tag", "eu", "--tag", "refit", "--concurrency-limit", "2", "--timezone", "Europe/Berlin")
    assert refit("deploy", *scoring, *where, *more)[0] == 0
    with get_client(sync_client=True) as client:
        found = {flow: client.read_deployment_by_name(f"{flow}/fish") for flow in ("train", "retrain", "predict")}
    plans = {flow: [(line.schedule.cron, line.schedule.timezone) for line in entry.schedules] for flow, entry in found.items()}
    assert plans == {"train": [], "retrain": [("0 3 * * *", "Europe/Berlin")], "predict": [("0 5 * * *", "Europe/Berlin")]}
    assert found["predict"].parameters["source"] == "new.csv"
    assert found["predict"].parameters["output"] == "scores.parquet"
    for entry in found.values():
        assert (entry.tags, entry.work_queue_name, entry.global_concurrency_limit.limit) == (["refit", "eu"], "night", 2)
        assert entry.job_variables["working_dir"] == "/data"
        env = {"CUDA_VISIBLE_DEVICES": "0", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
        assert entry.job_variables["env"].items() >= env.items()
        assert [*entry.pull_steps[0]] == ["refit.server.project.start_apart"]
        assert str(project) not in entry.model_dump_json()

    version = found["train"].version
    assert re.fullmatch(r"\d+\.\d+\.\d+\+[0-9a-f]{8}\.[0-9a-f]{8}", version)
    assert {entry.version for entry in found.values()} == {version}
    assert refit("deploy", "--optimizer.lr", "0.5")[0] == 0
    with get_client(sync_client=True) as client:
        again = client.read_deployment_by_name("predict/fish")
    assert again.version[:-9] == version[:-9]
    assert again.version != version
    assert (again.id, again.schedules, again.tags, again.global_concurrency_limit) == (found["predict"].id, [], ["refit"], None)


def test_a_version_changes_with_settings_and_code_of_the_model_and_with_nothing_else():
    Path("network.py").write_text("def build(i, o):\n    return i\n")
    settings, _ = resolve_settings({"model": {"factory": "network:build"}})
    version = describe_version(settings)
    Path("network.py").write_text("def build(i, o):\n    return i  # more\n")
    assert describe_version(settings) == version
    Path("network.py").write_text("def build(i, o):\n    return o\n")
    assert describe_version(settings)[-8:] == version[-8:]
    assert describe_version(settings) != version


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_a_pool_of_another_type_is_taken_as_it_is_with_the_variables_that_it_knows(refit, kind):
    metadata = json.loads(Path(prefect.__file__).with_name("server").joinpath(METADATA).read_text())
    template = metadata[f"prefect-{kind}"][kind]["default_base_job_configuration"]
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=kind, type=kind, base_job_template=template))
        given = ("--pool", kind, "--job-variables")
        code, _, err = refit("deploy", *given, '{"imagine": "refit:1"}')
        assert code == 2
        assert f"--job-variables: expected those of work pool {kind}, which is of type {kind}, found imagine; it knows " in err
        assert refit("deploy", *given, '{"image": 1}')[2].count("expected fields that the server accepts, found") == 1
        assert refit("deploy", *given, '{"image": "refit:1", "env": {"PROJECT_FOLDER": "/project"}}')[0] == 0
        deployment = client.read_deployment_by_name("retrain/fish")
        assert (deployment.work_pool_name, deployment.job_variables["image"]) == (kind, "refit:1")
        assert deployment.job_variables["env"]["PROJECT_FOLDER"] == "/project"
        removed = json.loads(refit("deploy", "--pool", kind, "--remove", "--json")[1])["removed"]
        assert f"work pool {kind}" not in removed
        client.delete_work_pool(kind)


@pytest.mark.usefixtures("project")
def test_a_pool_that_a_worker_makes_at_the_same_moment_is_taken(refit, monkeypatch):
    read = SyncPrefectClient.read_work_pool
    calls = []

    def read_just_before_the_worker(client, name):
        calls.append(name)
        if len(calls) == 1:
            with pytest.raises(ObjectNotFound):
                read(client, name)
            client.create_work_pool(WorkPoolCreate(name=name, type="process"))
            raise ObjectNotFound(http_exc=RuntimeError("not there yet"))
        return read(client, name)

    monkeypatch.setattr(SyncPrefectClient, "read_work_pool", read_just_before_the_worker)
    code, _, err = refit("deploy", "--pool", "crowded")
    assert (code, calls[:2]) == (0, ["crowded", "crowded"]), err
    assert refit("deploy", "--pool", "crowded", "--remove")[0] == 0
    with get_client(sync_client=True) as client:
        client.delete_work_pool("crowded")


def test_deployments_of_others_are_looked_after_where_they_have_the_tag(refit):
    with get_client(sync_client=True) as client:
        flow = client.create_flow_from_name("retrain")
        schedules = [DeploymentScheduleCreate(schedule=IntervalSchedule(interval=timedelta(hours=2)))]
        ours, theirs = (
            client.create_deployment(flow, name, tags=tags, schedules=schedules)
            for name, tags in (("crab", ["refit"]), ("eel", []))
        )
        CustomWebhookNotificationBlock(name="team", url="http://127.0.0.1:9").save("team")
        told = json.loads(refit("automations", "--json")[1])
        assert told["deployments"] == ["retrain/crab"]
        assert "refit: start a crashed run again" in told["automations"]
        assert "refit: tell of trouble with crab" not in told["automations"]

        assert refit("automations", "crab", "--notify", "custom-webhook/team")[0] == 0
        (notice,) = client.read_automations_by_name("refit: tell of lost nights of crab")
        assert notice.trigger.within == timedelta(hours=3)
        assert refit("automations", "crab")[0] == 0
        assert client.read_automations_by_name(notice.name) == []

        code, _, err = refit("automations", "eel", "--notify", "custom-webhook/team")
        assert code == 2
        assert "expected a deployment retrain/eel with the tag `refit`, found retrain/crab; tag it in" in err
        for deployment in (ours, theirs):
            client.delete_deployment(deployment)
        assert "no deployment yet" in refit("automations")[1]
        remove_automations(client)


def test_another_project_with_that_name_is_refused_by_the_folder_that_has_it(refit, project, tmp_path, monkeypatch):
    assert refit("deploy")[0] == 0
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    code, out, err = refit("deploy", "--name", "fish", "--data.source", "fish.csv")
    assert (code, out) == (2, "")
    pool = name_pool(project)
    assert f"name: expected one that no other project has on this server, found train/fish of {project} on " in err
    assert f"in work pool {pool}; set another name, or" in err
    assert f"take over its pool with --pool {pool}" in err
    told = json.loads(refit("deploy", "--name", "fish", "--data.source", "fish.csv", "--pool", pool, "--json")[1])
    assert told["pool"] == pool


def test_an_earlier_model_of_the_folder_is_named_and_can_be_removed_with_its_planned_runs(refit, project, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(project / "config"))
    told = json.loads(refit("deploy", "--systemd", "--json")[1])
    assert told["units"][1:] == [f"{project}/config/systemd/user/refit-worker-{told['pool'].removeprefix('refit-')}.service"]
    out = refit("deploy", "--name", "crab", "--systemd")[1]
    assert "systemctl --user enable --now refit-server.service refit-worker-" in out.replace("\n  ", " ")
    of_fish, of_crab = plan_run("fish"), plan_run("crab")
    assert re.search(r"also deployed from here; remove with\n +retrain/fish +`refit deploy --remove --name fish`", out)
    code, out, _ = refit("deploy", "--remove", "--name", "fish", "--json")
    removed = ["train/fish", "retrain/fish", "predict/fish", "refit: go on without an answer about fish"]
    assert (code, json.loads(out)) == (0, {"removed": removed, "going_on": [], "num_dropped": 1})
    assert (is_planned(of_fish), is_planned(of_crab)) == (False, True)

    code, _, err = refit("deploy", "--remove", "--name", "fish")
    assert code == 2
    assert f"in work pool {name_pool(project)}, found no 'fish'; those there: crab; --pool names another pool" in err
    removed = json.loads(refit("deploy", "--remove", "--json")[1])["removed"]
    assert removed[:3] == ["train/crab", "retrain/crab", "predict/crab"]
    assert removed[-1] == f"work pool {name_pool(project)}"
    assert "refit: note that a silent run has crashed" in removed
    assert not is_planned(of_crab)
    assert "nothing: nothing was deployed from here" in refit("deploy", "--remove")[1]


@pytest.mark.usefixtures("project")
def test_removing_a_deployment_says_which_runs_go_on_and_drops_those_that_wait(refit):
    assert refit("deploy")[0] == 0
    plan_run("fish")
    with get_client(sync_client=True) as client:
        at_work, crashed, asking = (client.read_flow_run(plan_run("fish")) for _ in range(3))
        for state in (Running(), Crashed(), Scheduled(name="AwaitingRetry")):
            client.set_flow_run_state(crashed.id, state, force=True)
        for state in (Running(), Suspended()):
            client.set_flow_run_state(asking.id, state, force=True)
        (deployed,) = read_deployed(client, "retrain", "fish")
        assert (deployed.last_run.name, deployed.last_run.message) == (asking.name, "it waits on its page for an answer")
        client.set_flow_run_state(at_work.id, Running(), force=True)
        code, out, _ = refit("deploy", "--remove")
        assert code == 0
        assert re.search(rf"runs\n +continue to their end +{at_work.name} *\n +dropped +3 that were planned or waited", out)
        assert client.read_flow_run(at_work.id).state_name == "Running"
        assert [client.read_flow_run(run.id).state_name for run in (crashed, asking)] == ["Cancelled"] * 2


@pytest.mark.usefixtures("project")
def test_status_says_of_a_crashed_run_that_it_is_started_again_whether_it_had_begun_or_not(refit, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert refit("deploy")[0] == 0
    run, following = plan_run("fish"), plan_run("fish")
    with get_client(sync_client=True) as client:
        name, at = client.read_flow_run(run).name, datetime.now(UTC) + timedelta(hours=6)
        client.set_flow_run_state(following, Scheduled(scheduled_time=at), force=True)
        for begun in ([], [Running()]):
            for state in (*begun, Crashed(message="out of memory"), Scheduled(name=AWAITING_RESTART, message="by Automation 7")):
                client.set_flow_run_state(run, state, force=True)
            code, out, _ = refit("status")
            assert code == 1
            assert re.search(rf"last run +{name}, Crashed \d+ seconds? ago, to be started again: out of memory", out)
            assert re.search(r"next run .*, in 5 hours", out)
        client.set_flow_run_state(run, Running(), force=True)
    assert re.search(rf"last run +{name}, Running ", refit("status")[1])


def test_a_deploying_that_the_server_refuses_changes_nothing(project, refit):  # noqa: ARG001
    def read_all() -> list[set[str]]:
        with get_client(sync_client=True) as client:
            return [
                {found.name for found in read()}
                for read in (client.read_automations, client.read_deployments, client.read_work_pools)
            ]

    before, refused = read_all(), ("deploy", "--job-variables", '{"env": {"A": 1}}')
    assert refit(*refused)[0] != 0
    assert read_all() == before
    with get_client(sync_client=True):
        CustomWebhookNotificationBlock(name="told", url="http://127.0.0.1:9").save("told", overwrite=True)
    assert refit("deploy", "--notify", "custom-webhook/told")[0] == 0
    deployed = read_all()
    assert refit(*refused)[0] != 0
    assert read_all() == deployed
