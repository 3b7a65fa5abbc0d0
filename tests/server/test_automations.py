from datetime import timedelta

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import PrefectHTTPStatusError

from refit.server.api import ServerError
from refit.server.automations import remove_automations, remove_automations_of, update_automations

DAY = timedelta(days=1)


@pytest.mark.usefixtures("prefect_server")
def test_a_server_that_refuses_one_automation_is_left_with_those_that_it_had(monkeypatch):
    """As Prefect Cloud may, where its plan allows no more."""
    create, refusal = SyncPrefectClient.create_automation, httpx.Response(403, request=httpx.Request("POST", "http://cloud"))

    def create_some(client, automation):
        if len(client.read_automations()) == 2:
            raise PrefectHTTPStatusError("only 2 automations", request=refusal.request, response=refusal)
        return create(client, automation)

    with get_client(sync_client=True) as client:
        monkeypatch.setattr(SyncPrefectClient, "create_automation", create_some)
        message = "expected the server to take 5, found that it refuses 'refit: give up .*': only 2 automations; make room for 5"
        with pytest.raises(ServerError, match=message):
            update_automations(client, "fish", DAY, DAY, block=None)
        assert client.read_automations() == []

        monkeypatch.undo()
        names = update_automations(client, "fish", DAY, DAY, block=None)
        assert sorted(automation.name for automation in client.read_automations()) == sorted(names)
        again = update_automations(client, "crab", DAY, DAY, block=None)
        assert again[:-1] == names[:-1]  # the last is about questions of the model
        assert len(client.read_automations()) == len(names) + 1 == 6
        for model in ("fish", "crab"):
            remove_automations_of(client, model)
        remove_automations(client)
        assert client.read_automations() == []
