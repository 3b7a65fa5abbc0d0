"""The form of a deployment asks for `changes`; each field says which value applies if it is left open."""

import json
import re
from collections.abc import Mapping
from typing import Any

from refit.settings import SettingsTree, resolve_settings, walk_settings

DEFAULT = re.compile(r" Default: .*\.$")


def fill_in_values(schema: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a form in which each setting that is not a default says its value and origin.

    The form does not ask for `settings`, because the server gives all runs those of the deployment.

    Args:
        schema: As Prefect makes it from the flow.
        given: The settings that the deployment fixes.
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
