"""The body of a request: JSON by its header, then `parse`.

A browser sends other types to any address without asking it first, so a page that somebody visits
could make a server on their machine work; JSON it may only send where CORS allows it.
"""

from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel

from server.errors import ApiError
from server.openai.parse import receive

M = TypeVar("M", bound=BaseModel)


async def read(model: type[M], request: Request) -> M:
    """The body as a `model`. A missing content type is taken for JSON. Raises `ApiError`."""
    named = request.headers.get("content-type", "application/json")
    kind = named.partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise ApiError(
            "unsupported_media_type",
            f"The body is {kind[:80]!r} by its Content-Type: send it as application/json.",
        )
    return await receive(model, request.stream())
