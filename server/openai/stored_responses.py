"""`/v1/responses/{id}`: what was stored, for the API key that it belongs to.

Knows ids and pages of lists; the store knows what there is.
"""

import asyncio
import json

from fastapi import APIRouter, Request, Response

from server.api_errors import ApiError
from server.health import Live
from server.openai.openapi import ErrorEnvelope
from server.openai.response.whole import WholeAnswer
from server.openai.responses import owner_of
from server.openai.schemas.input_items import Item
from server.openai.schemas.response_answers import DeletedResponse, InputItems, ResponseAnswer
from server.openai.schemas.responses import IMAGES
from server.openai.stored_items import shown

MAX_PAGE, PAGE = 100, 20  # items

router = APIRouter(
    prefix="/v1/responses/{response_id}",
    tags=["responses"],
    responses={"default": {"model": ErrorEnvelope}},
)


@router.get("", responses={200: {"model": ResponseAnswer}})
async def retrieve(response_id: str, request: Request, live: Live) -> Response:
    """A stored response, as it was answered."""
    for name in ("stream", "starting_after"):
        if request.query_params.get(name, "false") != "false":
            message = f"'{name}' is not supported here. A stored response is given whole."
            raise ApiError("unsupported_parameter", message, param=name)
    stored = live.responses.get(response_id, owner_of(request))
    return Response(stored.body, media_type="application/json")


@router.delete("", responses={200: {"model": DeletedResponse}})
async def delete(response_id: str, request: Request, live: Live) -> Response:
    """Forget a response. Those that go on from it keep what they were made of."""
    live.responses.delete(response_id, owner_of(request))
    deleted = DeletedResponse(id=response_id, object="response", deleted=True)
    return Response(deleted.to_json(), media_type="application/json")


@router.get("/input_items", responses={200: {"model": InputItems}})
async def input_items(response_id: str, request: Request, live: Live) -> Response:
    """What a response was made of, the newest first: its input, and what came before that."""
    query = request.query_params
    items = list(live.responses.get(response_id, owner_of(request)).input_items())
    if (order := query.get("order", "desc")) not in ("asc", "desc"):
        raise _wrong("order", "it should be 'asc' or 'desc'")
    if order == "desc":
        items.reverse()
    limit = query.get("limit", str(PAGE))
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= MAX_PAGE):
        raise _wrong("limit", f"it should be a number from 1 to {MAX_PAGE}")
    if (after := query.get("after")) is not None:
        at = next((n for n, item in enumerate(items) if item.id == after), None)
        if at is None:
            raise _wrong("after", "no item has this id")
        items = items[at + 1 :]
    page, more = items[: int(limit)], len(items) > int(limit)
    images = IMAGES in (*query.getlist("include"), *query.getlist("include[]"))
    return WholeAnswer(await asyncio.to_thread(_listed, page, more, images), {})


def _listed(page: list[Item], more: bool, images: bool) -> list[bytes]:
    """The list in parts, one of each item: their images may be large."""
    parts: list[bytes] = [b'{"object":"list","data":[']
    for n, item in enumerate(page):
        text = json.dumps(shown(item, images=images))
        parts.append(b"," * bool(n) + text.encode())
    ends = {
        "first_id": page[0].id if page else None,
        "last_id": page[-1].id if page else None,
        "has_more": more,
    }
    return [*parts, b"]," + json.dumps(ends).encode()[1:]]


def _wrong(name: str, why: str) -> ApiError:
    return ApiError("invalid_value", f"Invalid value for '{name}': {why}.", param=name)
