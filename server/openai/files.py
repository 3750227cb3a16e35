"""OpenAI's routes of files: uploaded once, named in chats by their id, each seen by its key alone.

Knows how files are listed and answered; what they hold, `server.media` sees when a chat names one.
"""

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from server.api_errors import ApiError
from server.file_store import StoredFile
from server.health import Live
from server.openai.openapi import ErrorEnvelope
from server.openai.request.upload import ANCHOR, SECONDS, read_upload
from server.openai.schemas.files import PURPOSES, FileDeleted, FileList, FileObject
from server.services import Services
from server.turns import current_owner

MAX_LISTED = 10_000
PIECE_BYTES = 256 * 2**10  # sent at once
FORM: dict[str, Any] = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary", "description": "a PDF or an image"},
        "purpose": {"type": "string", "enum": list(PURPOSES)},
        ANCHOR: {"type": "string", "enum": ["created_at"]},
        SECONDS: {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
    },
}
BODY = {"required": True, "content": {"multipart/form-data": {"schema": FORM}}}
QUERY: list[dict[str, Any]] = [
    {"in": "query", "name": "after", "schema": {"type": "string"}},
    {"in": "query", "name": "limit", "schema": {"type": "integer"}},
    {"in": "query", "name": "order", "schema": {"enum": ["asc", "desc"]}},
    {"in": "query", "name": "purpose", "schema": {"type": "string"}},
]
BYTES: dict[str, Any] = {"application/octet-stream": {"schema": {"format": "binary"}}}

router = APIRouter(prefix="/v1", tags=["openai"], responses={"default": {"model": ErrorEnvelope}})


@router.post("/files", openapi_extra={"requestBody": BODY}, responses={200: {"model": FileObject}})
async def upload(request: Request, live: Live) -> Response:
    """Keep a file in memory, for chats to name it as `file_id`."""
    settings = live.settings
    given = await read_upload(request, settings.max_file_bytes, settings.cors_origins)
    if not live.files.fits(len(given.data)):
        message = f"This server keeps files of {settings.file_memory} bytes together at most."
        raise ApiError("file_too_large", message, param="file")
    owner = current_owner().key
    added = live.files.add(owner, given.data, given.filename, given.purpose, given.lifetime_s)
    return _json(_shown(added))


@router.get("/files", openapi_extra={"parameters": QUERY}, responses={200: {"model": FileList}})
async def listed(request: Request, live: Live) -> Response:
    """The files of this API key."""
    query = request.query_params
    order, after = query.get("order", "desc"), query.get("after")
    if order not in ("asc", "desc"):
        raise ApiError("invalid_value", "'order' must be asc or desc.", param="order")
    limit = query.get("limit", str(MAX_LISTED))
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= MAX_LISTED):
        message = f"'limit' must be from 1 to {MAX_LISTED}."
        raise ApiError("invalid_value", message, param="limit")
    found = live.files.listed(current_owner().key)
    if order == "desc":
        found.reverse()
    if after is not None:
        place = next((n for n, each in enumerate(found) if each.id == after), None)
        if place is None:
            raise _not_found("after")
        found = found[place + 1 :]
    found = [each for each in found if query.get("purpose") in (None, each.purpose)]
    page = found[: int(limit)]
    return _json(
        FileList(
            object="list",
            data=[_shown(each) for each in page],
            first_id=page[0].id if page else None,
            last_id=page[-1].id if page else None,
            has_more=len(found) > len(page),
        )
    )


@router.get("/files/{file_id}", responses={200: {"model": FileObject}})
async def one(file_id: str, live: Live) -> Response:
    """What is known of one file."""
    return _json(_shown(_found(live, file_id)))


@router.get("/files/{file_id}/content", responses={200: {"content": BYTES}})
async def content(file_id: str, live: Live) -> Response:
    """Its bytes, which no browser takes for a page of ours."""
    headers = {"content-disposition": "attachment", "x-content-type-options": "nosniff"}
    data = _found(live, file_id).data
    headers["content-length"] = str(len(data))
    return StreamingResponse(_pieces(data), media_type="application/octet-stream", headers=headers)


@router.delete("/files/{file_id}", responses={200: {"model": FileDeleted}})
async def delete(file_id: str, live: Live) -> Response:
    """Forget it; chats that have begun still read it."""
    if not live.files.delete(current_owner().key, file_id):
        raise _not_found("file_id")
    return _json(FileDeleted(id=file_id, object="file", deleted=True))


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), PIECE_BYTES):
        yield data[at : at + PIECE_BYTES]


def _found(live: Services, file_id: str) -> StoredFile:
    found = live.files.get(current_owner().key, file_id)
    if found is None:
        raise _not_found("file_id")
    return found


def _not_found(param: str) -> ApiError:
    return ApiError("file_not_found", "There is no such file of this API key.", param=param)


def _shown(file: StoredFile) -> FileObject:
    return FileObject(
        id=file.id,
        object="file",
        bytes=len(file.data),
        created_at=file.created_at,
        expires_at=file.expires_at,
        filename=file.filename,
        purpose=file.purpose,
        status="processed",
    )


def _json(answer: FileObject | FileList | FileDeleted) -> Response:
    return Response(answer.to_json(), media_type="application/json")
