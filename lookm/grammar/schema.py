"""What is done to a client's JSON schema before it is compiled.

Knows where a schema holds others, so that a property named `format` is left alone. Pure.
"""

from collections.abc import Callable, Mapping
from typing import Any

from lookm.errors import RequestError

MAX_KEYS = 512  # of one object in a schema: the compiler's time grows with their square

OPENAI_FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid")
)
FORMATS = OPENAI_FORMATS | {"uri", "unknown"}  # what the compiler can follow

HOLD_ONE = ("additionalProperties", "contains", "else", "if", "items", "not", "propertyNames",
            "then", "unevaluatedItems", "unevaluatedProperties")  # fmt: skip
HOLD_LIST = ("allOf", "anyOf", "items", "oneOf", "prefixItems")
HOLD_NAMED = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")


def checked(schema: Any, param: str) -> dict[str, Any]:
    """The schema without the formats that nobody here knows: JSON Schema says to ignore them.

    Raises `RequestError` for what is no schema, or too large a one.
    """
    if not isinstance(schema, dict):
        raise RequestError("a JSON schema must be a JSON object", param=param)
    if _most_keys(schema) > MAX_KEYS:
        message = f"an object of the JSON schema has more than {MAX_KEYS} keys"
        raise RequestError(message, param=param)
    return _without_unknown_formats(schema)


def formats(schema: Mapping[str, Any]) -> list[str]:
    """The formats that it and the schemas in it name."""
    found: list[str] = []

    def look(inside: Mapping[str, Any]) -> dict[str, Any]:
        if isinstance(name := inside.get("format"), str):
            found.append(name)
        return rebuilt(inside, look)

    look(schema)
    return found


def _without_unknown_formats(schema: Mapping[str, Any]) -> dict[str, Any]:
    known = {key: value for key, value in schema.items() if not _is_unknown_format(key, value)}
    return rebuilt(known, _without_unknown_formats)


def _is_unknown_format(key: str, value: Any) -> bool:
    return key == "format" and isinstance(value, str) and value not in FORMATS


def rebuilt(
    schema: Mapping[str, Any], change: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    """A copy of a schema in which each schema that it holds directly is changed."""
    found = dict(schema)
    for key, value in schema.items():
        if isinstance(value, dict) and key in HOLD_ONE:
            found[key] = change(value)
        elif isinstance(value, list) and key in HOLD_LIST:
            found[key] = [change(each) if isinstance(each, dict) else each for each in value]
        elif isinstance(value, dict) and key in HOLD_NAMED:
            found[key] = {
                name: change(each) if isinstance(each, dict) else each
                for name, each in value.items()
            }
    return found


def _most_keys(value: Any) -> int:
    inside = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict | list):
        return 0
    return max(len(value) if isinstance(value, dict) else 0, *map(_most_keys, inside), 0)
