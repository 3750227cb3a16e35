"""What `strict: true` asks of a schema besides being enforced, which every schema is.

OpenAI refuses formats it does not know; without `strict` they are ignored, as JSON Schema says.
Knows requests; how a schema is followed is `lookm.grammar`'s.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from lookm.grammar.schema import OPENAI_FORMATS, formats
from server.api_errors import ApiError
from server.openai.schemas.requests import ChatRequest, JsonSchemaFormat


def check_strict(body: ChatRequest) -> None:
    """Raises `ApiError`, which names the format."""
    for param, schema in _strict_schemas(body):
        unknown = next((name for name in formats(schema) if name not in OPENAI_FORMATS), None)
        if unknown is not None:
            known = ", ".join(sorted(OPENAI_FORMATS))
            message = f"A strict schema cannot have the format {unknown!r}; supported are {known}."
            raise ApiError("invalid_value", message, param=param)


def _strict_schemas(body: ChatRequest) -> Iterator[tuple[str, Mapping[str, Any]]]:
    form = body.response_format
    if isinstance(form, JsonSchemaFormat) and form.json_schema.strict:
        yield "response_format", form.json_schema.schema_
    for n, tool in enumerate(body.tools or ()):
        if tool.function.strict:
            yield f"tools[{n}].function.parameters", tool.function.parameters or {}
