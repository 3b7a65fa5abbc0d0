"""The form of a deployment asks for `changes`; each field says which value holds if it is left open."""

import json
import re
from collections.abc import Mapping
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.responses import DeploymentResponse

from refit.settings import SettingsTree, resolve_settings, walk_settings

DEFAULT = re.compile(r" Default: .*\.$")


def show_effective_values(client: SyncPrefectClient, deployment: DeploymentResponse, given: Mapping[str, Any]) -> None:
    """Have a deployment's form tell the values of this folder, where they are no defaults.

    Args:
        client: Of the server.
        deployment: As the server has it.
        given: The settings that its runs are given.
    """
    schema = fill_in_values(deployment.parameter_openapi_schema or {}, given)
    client.request("PATCH", "/deployments/{id}", path_params={"id": deployment.id}, json={"parameter_openapi_schema": schema})


def fill_in_values(schema: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a form with the value and its origin in the description of each setting that is no default.

    It does not ask for `settings`: the server gives runs those of the deployment, whatever the form says.
    """
    schema = json.loads(json.dumps(schema))
    schema.get("properties", {}).pop("settings", None)
    resolved, origins = resolve_settings(parameters={"deployment": given})
    for name, value in walk_settings(resolved):
        section, _, field = name.rpartition(".")
        model = SettingsTree.model_fields[section].annotation if section else SettingsTree
        shown = schema.get("definitions", {}).get(getattr(model, "__name__", ""), {}).get("properties", {}).get(field)
        if shown is not None and origins[name] != "default":
            origin = "as deployed" if origins[name] == "deployment" else f"from {origins[name]}"
            shown["description"] = DEFAULT.sub(f" Here: {json.dumps(value)}, {origin}.", shown["description"])
    return schema
