"""What Refit uses of Prefect beyond its documentation, a test each: a release that changes it fails here."""

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.schedules import CronSchedule
from prefect.context import FlowRunContext
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter
from prefect.filesystems import WritableFileSystem
from prefect.flow_engine import run_flow
from prefect.results import ResultStore, get_result_store
from prefect.serializers import JSONSerializer
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, get_current_settings, temporary_settings
from prefect.states import Cancelling, Running
from pydantic import PrivateAttr

from refit.undocumented import RUN_COUNT, PlainKeys, RunKeepsState, asking_once, pack_result, plan_runs, unpack_result


class OurShelf(PlainKeys):
    """Keeps files in memory."""

    _files: dict[str, bytes] = PrivateAttr(default_factory=dict)

    def read_path(self, path: str, **_: Any) -> bytes:
        return self._files[path]

    def write_path(self, path: str, content: bytes, **_: Any) -> None:
        self._files[path] = content


class PrefectsShelf(WritableFileSystem):
    def read_path(self, path: str, **_: Any) -> bytes:
        raise NotImplementedError

    def write_path(self, path: str, content: bytes, **_: Any) -> None:
        raise NotImplementedError


def test_results_are_written_and_read_by_their_keys():
    shelf = OurShelf()
    ResultStore(result_storage=shelf).write({"answer": 42}, "a-key")
    assert [*shelf._files] == ["a-key"]
    assert ResultStore(result_storage=shelf).read("a-key").result == {"answer": 42}


def test_prefect_does_not_do_so_by_itself():
    """Should it one day, ours is not needed any more."""
    with pytest.raises(ValueError, match="'a-key' is not in the subpath"):
        ResultStore(result_storage=PrefectsShelf()).write({"answer": 42}, "a-key")


def test_a_result_is_taken_out_of_prefects_record_and_put_into_one_that_prefect_reads():
    shelf = OurShelf()
    with FlowRunContext.model_construct(result_store=ResultStore(result_storage=shelf, serializer=JSONSerializer())):
        get_result_store().write({"answer": 42}, "a-key")
        bare = unpack_result(shelf._files["a-key"], "a-key")
        assert json.loads(bare) == {"answer": 42}
        shelf._files["another"] = pack_result(json.loads(bare), "another")
        assert get_result_store().read("another").result == {"answer": 42}


@pytest.mark.usefixtures("prefect_server")
def test_a_run_ends_in_the_state_that_the_server_has_it_in():
    @flow
    def cancelled() -> None:
        client.set_flow_run_state(run.id, Cancelling(), force=True)
        raise RunKeepsState

    with get_client(sync_client=True) as client:
        run = client.create_flow_run(cancelled)
        with pytest.raises(RunKeepsState):
            run_flow(cancelled, flow_run=run)
        assert client.read_flow_run(run.id).state_name == "Cancelling"


def test_asking_once_changes_one_setting_and_puts_it_back():
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
        expected = get_current_settings().model_dump()
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 7}):
        with asking_once():
            assert get_current_settings().model_dump() == expected
            assert PREFECT_CLIENT_MAX_RETRIES.value() == 0
        assert PREFECT_CLIENT_MAX_RETRIES.value() == 7


def test_the_next_runs_of_a_schedule_are_those_of_its_clock():
    found = plan_runs(CronSchedule(cron="30 3 * * *", timezone="Europe/Berlin"), 400)
    assert len(found) == 400
    assert datetime.now(UTC) < found[0] < datetime.now(UTC) + timedelta(days=1, hours=1)
    local = [date.astimezone(ZoneInfo("Europe/Berlin")) for date in found]
    assert {date.strftime("%H:%M") for date in local} == {"03:30"}
    assert [date.date() - local[0].date() for date in local] == [timedelta(days=number) for number in range(400)]


@pytest.mark.usefixtures("prefect_server")
def test_events_of_a_run_tell_how_often_it_has_begun():
    @flow
    def counted() -> None:
        pass

    with get_client(sync_client=True) as client:
        run = client.create_flow_run(counted, state=Running())
        of_run = EventFilter(
            event=EventNameFilter(name=["prefect.flow-run.Running"]),
            resource=EventResourceFilter(id=[f"prefect.flow-run.{run.id}"]),
        )
        for _ in range(300):
            if found := client.read_events(of_run, limit=1).events:
                break
            time.sleep(0.1)
        assert [event.resource[RUN_COUNT] for event in found] == ["1"]
