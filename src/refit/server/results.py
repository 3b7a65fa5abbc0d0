"""Results of flows as JSON, which another process reads back as the same types."""

from typing import Any

from prefect.serializers import JSONSerializer, prefect_json_object_decoder, prefect_json_object_encoder

from refit import refs

CLASS, FIELDS = "refit", "fields"


def encode(value: Any) -> Any:
    """Write a result by its class and fields, and anything else, such as an error, as Prefect does.

    Prefect would write the fields as `data`, later take a file with that key for a record of an early version, and read a
    dictionary.
    """
    if isinstance(value, refs.Handle):
        return {CLASS: type(value).__name__, FIELDS: value.model_dump(mode="json")}
    return prefect_json_object_encoder(value)


def decode(found: dict[str, Any]) -> Any:
    """Read what `encode` wrote."""
    if found.keys() == {CLASS, FIELDS}:
        return getattr(refs, found[CLASS]).model_validate(found[FIELDS])
    return prefect_json_object_decoder(found)


KEPT: dict[str, Any] = {
    "persist_result": True,
    "result_serializer": JSONSerializer(object_encoder=f"{__name__}.encode", object_decoder=f"{__name__}.decode"),
}
"""Options of a flow whose result is kept."""
