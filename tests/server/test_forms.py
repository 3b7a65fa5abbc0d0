from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.schedules import CronSchedule
from prefect.utilities.callables import parameter_schema

from refit.flows.retraining import retrain
from refit.server.forms import show_effective_values


@pytest.mark.usefixtures("prefect_server")
def test_a_form_asks_for_changes_and_tells_the_values_that_hold_without_and_nothing_else_of_the_deployment_changes():
    Path("refit.toml").write_text('name = "toy"\n[data]\ntarget = "label"\n')
    with get_client(sync_client=True) as client:
        identity = client.create_deployment(
            client.create_flow(retrain),
            "form",
            schedules=[{"schedule": CronSchedule(cron="0 3 * * *"), "active": True}],
            parameter_openapi_schema=parameter_schema(retrain).model_dump(),
        )
        before = client.read_deployment(identity)
        show_effective_values(client, before, {"optimizer": {"lr": 0.5}})
        after = client.read_deployment(identity)
    assert [*after.parameter_openapi_schema["properties"]] == ["changes"]
    forms = after.parameter_openapi_schema["definitions"]
    assert forms["SettingsTree"]["properties"]["name"]["description"].endswith(' Here: "toy", from refit.toml.')
    assert forms["DataSettings"]["properties"]["target"]["description"].endswith(' Here: "label", from refit.toml.')
    assert forms["OptimizerSettings"]["properties"]["lr"]["description"].endswith(" Here: 0.5, as deployed.")
    assert forms["OptimizerSettings"]["properties"]["momentum"]["description"].endswith(" Default: 0.0.")
    changed = {"parameter_openapi_schema", "updated", "version_id", "version_info"}
    assert after.model_dump(exclude=changed) == before.model_dump(exclude=changed)
    assert [entry.schedule.cron for entry in after.schedules] == ["0 3 * * *"]
