"""The body of a request: what it is said to be, then `parse`.

A browser sends text and forms to any address without asking it first, so a page that somebody
visits could make a server on their machine work; JSON it may only send where CORS allows it. What
does not come from a page (it has no Origin) is taken for JSON, whatever it is called: by `curl -d`
a form.
"""

from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel

from server.api_errors import ApiError
from server.openai.request.parse import receive

M = TypeVar("M", bound=BaseModel)


async def read(model: type[M], request: Request) -> M:
    """The body as a `model`. Raises `ApiError`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = kind == "application/json" or kind.endswith("+json")
    if "origin" in request.headers and not is_json:
        raise ApiError(
            "unsupported_media_type",
            f"A page in a browser must send application/json, not {kind[:80]!r}.",
        )
    live = request.app.state.services
    return await receive(model, request.stream(), live.parsing, live.max_text_bytes)
