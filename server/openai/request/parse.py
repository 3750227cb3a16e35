"""Bytes of a body into a request model, or the one `ApiError` that names the field at fault.

The event loop must not wait for 150 MB of pictures: large bodies are parsed in a thread, with their
data: URLs cut out (`cut`), for the parser does not release the interpreter's lock. Knows pydantic's
errors; nothing about HTTP.
"""

import asyncio
import codecs
import contextlib
from collections.abc import AsyncIterator, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from server.api_errors import ApiError
from server.openai.request.large_json import cut, num_values, restored
from server.turns import Turns

M = TypeVar("M", bound=BaseModel)
Chunks = AsyncIterator[bytes]
Location = Sequence[str | int]

LARGE_BYTES = 256 * 2**10  # from here on parsing leaves the event loop: 5 ms
HUGE_BYTES = 4 * 2**20  # these take turns: each is in memory three times for a moment
MAX_VALUES = 2**17  # of a body, by its commas and brackets: the parser takes 20 ms for them
MAX_TEXT_BYTES = 8 * 2**20  # beside what fits a context: the parser takes 30 ms for them
MAX_NAME_CHARACTERS = 100  # of an unknown field, to look for one that was meant
UNION_MEMBERS = {
    "<string>": "a string",
    "<number>": "a number",
    "<array>": "an array",
    "<object>": "an object",
}
WRONG_KEY = "[key]"  # what pydantic adds where it is a mapping's key that is wrong
# After an index into these, pydantic's location holds the tag that chose the union's member.
TAGGED_ITEMS = ("messages", "<array>")
TAGGED_BELOW = ("messages", "input")
# After these fields, too.
TAGGED_FIELDS = ("response_format", "tool_choice", "format")
TEXT_FIELDS = ("input", "messages", "prompt")  # where a request's text is, mostly


async def receive(
    model: type[M], chunks: Chunks, turns: Turns, max_text_bytes: int = MAX_TEXT_BYTES
) -> M:
    """Read a body and parse it; nothing keeps its bytes. Raises `ApiError`.

    Besides its long data: URLs it may have `max_text_bytes`.
    """
    body = bytearray()  # grows in place, and one large block goes back to the system at once
    async for chunk in chunks:
        body += chunk
    if len(body) <= LARGE_BYTES:
        return parse(model, bytes(body).removeprefix(codecs.BOM_UTF8))
    if len(body) <= HUGE_BYTES:
        return await asyncio.to_thread(_parse_large, model, body, max_text_bytes)
    async with turns.turn():
        return await asyncio.to_thread(_parse_large, model, body, max_text_bytes)


def parse(model: type[M], body: bytes | bytearray) -> M:
    """The body as a `model`. Raises `ApiError`."""
    with contextlib.suppress(ValueError):
        return model.model_validate(from_json(body))
    try:  # once more for the errors: they speak of JSON, not of Python
        return model.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=True, include_input=False)
        raise explain([dict(item) for item in found], known=tuple(model.model_fields)) from None


def _parse_large(model: type[M], body: bytearray, max_text_bytes: int) -> M:
    if body.startswith(codecs.BOM_UTF8):
        del body[: len(codecs.BOM_UTF8)]
    rest, strings = cut(body)
    if num_values(rest, MAX_VALUES) > MAX_VALUES:
        message = f"The body has more than {MAX_VALUES} values, by its commas and brackets."
        raise ApiError("invalid_value", message)
    if len(rest) > max_text_bytes:
        message = (
            f"Besides its images the body has {len(rest)} bytes; text that fits the model's "
            f"context would be at most {max_text_bytes}: shorten it."
        )
        param = next(name for name in TEXT_FIELDS if name in model.model_fields)
        raise ApiError("context_length_exceeded", message, param=param)
    with contextlib.suppress(ValueError):
        return model.model_validate(restored(from_json(rest), strings))
    return parse(model, body)


def explain(found: Sequence[dict[str, Any]], *, known: Sequence[str] = ()) -> ApiError:
    """The first of pydantic's errors that says what the client meant to send, in OpenAI's words."""
    error = _meant(found)
    kind, location, context = error["type"], error["loc"], error.get("ctx", {})
    param = path(location) or None
    match kind:
        case "json_invalid":
            return ApiError("invalid_json", f"The body is not valid JSON: {context['error']}.")
        case "missing":
            message = f"Missing required parameter: '{param}'."
            return ApiError("missing_required_parameter", message, param=param)
        case "extra_forbidden":
            return _unknown(location, param, known)
        case "unsupported_parameter":
            message = f"'{param}' is not supported here. {error['msg']}"
            return ApiError("unsupported_parameter", message, param=param)
        case "union_tag_invalid" | "union_tag_not_found":
            return _wrong_tag(kind, str(param), context)
    if param is None:
        return ApiError("invalid_type", "The body must be a JSON object.")
    if kind.endswith("_type"):
        return ApiError(
            "invalid_type", f"Invalid type for '{param}': {_reason(error, found)}.", param=param
        )
    return ApiError(
        "invalid_value", f"Invalid value for '{param}': {_reason(error, found)}.", param=param
    )


def path(location: Location) -> str:
    """A location as the client writes it: `messages[0].content[2].image_url.url`."""
    shown, previous, tag_follows = "", "", False
    for item in location:
        if item in UNION_MEMBERS or item == WRONG_KEY:
            pass
        elif tag_follows:
            tag_follows = False
        elif isinstance(item, int):
            shown += f"[{item}]"
            tag_follows = previous in TAGGED_ITEMS and location[0] in TAGGED_BELOW
        else:
            shown += f".{item}" if shown else item
            tag_follows = item in TAGGED_FIELDS
        previous = str(item)
    return shown


def _meant(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first error; where no member of a union fits, that of the member that came furthest.

    An object whose tag is none of those there are came further than one that is no object.
    """
    first = found[0]
    if not first["loc"] or first["loc"][-1] not in UNION_MEMBERS:
        return first
    union = first["loc"][:-1]
    members = [error for error in found if error["loc"][: len(union)] == union]
    return max(
        members,
        key=lambda e: (
            len(e["loc"]),
            e["type"].startswith("union_tag"),
            not e["type"].endswith("_type"),
        ),
    )


def _unknown(location: Location, param: str | None, known: Sequence[str]) -> ApiError:
    name = str(location[-1])[:MAX_NAME_CHARACTERS]
    close = get_close_matches(name, known, n=1) if len(location) == 1 else []
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return ApiError("unknown_parameter", f"Unknown parameter: '{param}'.{hint}", param=param)


def _wrong_tag(kind: str, item: str, context: dict[str, Any]) -> ApiError:
    field = str(context["discriminator"]).strip("'")
    param = f"{item}.{field}"
    if kind == "union_tag_not_found":
        message = f"Missing required parameter: '{param}'."
        return ApiError("missing_required_parameter", message, param=param)
    message = f"Invalid value for '{param}': supported are {context['expected_tags']}."
    if context["tag"] == "function":
        message += " Deprecated by OpenAI: use 'tool'."
    return ApiError("invalid_value", message, param=param)


def _reason(error: dict[str, Any], found: Sequence[dict[str, Any]]) -> str:
    """Pydantic's message; for a union that no member fits, what the members are."""
    here = [e["loc"][-1] for e in found if path(e["loc"]) == path(error["loc"]) and e["loc"]]
    members = [UNION_MEMBERS[str(item)] for item in here if str(item) in UNION_MEMBERS]
    if len(members) > 1 and error["type"].endswith("_type"):
        return f"it should be {' or '.join(members)}"
    message = str(error["msg"])
    return message[:1].lower() + message[1:]
