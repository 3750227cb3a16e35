"""The form of an upload, read as it arrives: one file and what it is for, in memory, within limits.

A page in a browser may send forms to any address without asking it first; such a page may upload
here only where CORS would let it send JSON, or where it is this server's own. Forms are read by
python-multipart, which comes with pip's extra `pdf`.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from server.api_errors import ApiError
from server.openai.schemas.files import MAX_FILENAME, PURPOSES

INSTALL = "pip install 'lookm-server[pdf]'"
ANCHOR, SECONDS = "expires_after[anchor]", "expires_after[seconds]"
FIELDS = frozenset(("file", "purpose", ANCHOR, SECONDS))
MIN_LIFETIME_S, MAX_LIFETIME_S = 3600, 30 * 24 * 3600  # OpenAI's
MAX_FIELD_BYTES = 4096
FORM_BYTES = 64 * 2**10  # beside the file


@dataclass(frozen=True, slots=True)
class Upload:
    """One file. `lifetime_s` None: until it is deleted, or its room is needed."""

    data: bytes = field(repr=False)
    filename: str = field(repr=False)
    purpose: str
    lifetime_s: int | None


async def read_upload(request: Request, max_bytes: int, origins: Sequence[str]) -> Upload:
    """The upload; of a page only if it comes from one of `origins`. Raises `ApiError`."""
    _check_origin(request.headers, origins)
    if find_spec("python_multipart") is None:
        message = f"This server takes no uploads; with an extra it does: {INSTALL}."
        raise ApiError("unsupported_file", message, param="file")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise ApiError("unsupported_media_type", "Send the file as multipart/form-data.")
    stream = _bounded(request.stream(), max_bytes)
    parser = MultiPartParser(
        request.headers, stream, max_files=1, max_fields=len(FIELDS), max_part_size=MAX_FIELD_BYTES
    )
    parser.spool_max_size = max_bytes + FORM_BYTES  # so that it writes no file of its own
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise ApiError("invalid_value", f"The form cannot be read: {error.message}") from error
    try:
        return await _upload(form, max_bytes)
    finally:
        await form.close()


async def _upload(form: FormData, max_bytes: int) -> Upload:
    fields: Mapping[str, Any] = dict(form)
    for name in fields.keys() - FIELDS:
        raise ApiError("unknown_parameter", f"Unknown parameter: '{name}'.", param=name)
    for name in ("file", "purpose"):
        if name not in fields:
            message = f"Missing required parameter: '{name}'."
            raise ApiError("missing_required_parameter", message, param=name)
    file, purpose = fields["file"], fields["purpose"]
    if not isinstance(file, UploadFile):
        raise ApiError("invalid_type", "'file' must be a file with a name.", param="file")
    if purpose not in PURPOSES:
        message = f"Invalid value for 'purpose': supported are {', '.join(PURPOSES)}."
        raise ApiError("invalid_value", message, param="purpose")
    lifetime_s = _lifetime_s(fields)
    data = await file.read()
    if not data:
        raise ApiError("invalid_file", "The file has no bytes.", param="file")
    if len(data) > max_bytes:
        raise _too_large(max_bytes)
    return Upload(data, (file.filename or "file")[:MAX_FILENAME], purpose, lifetime_s)


def _lifetime_s(fields: Mapping[str, Any]) -> int | None:
    if fields.get(ANCHOR, "created_at") != "created_at":
        message = f"Invalid value for '{ANCHOR}': supported is created_at."
        raise ApiError("invalid_value", message, param="expires_after")
    if SECONDS not in fields:
        return None
    text = str(fields[SECONDS])
    seconds = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if not MIN_LIFETIME_S <= seconds <= MAX_LIFETIME_S:
        message = f"'{SECONDS}' must be from {MIN_LIFETIME_S} to {MAX_LIFETIME_S}."
        raise ApiError("invalid_value", message, param="expires_after")
    return seconds


async def _bounded(stream: AsyncIterator[bytes], max_bytes: int) -> Any:
    """The body's chunks, as far as they may be a file that is allowed."""
    num_bytes = 0
    async for chunk in stream:
        num_bytes += len(chunk)
        if num_bytes > max_bytes + FORM_BYTES:
            raise _too_large(max_bytes)
        yield chunk


def _check_origin(headers: Mapping[str, str], origins: Sequence[str]) -> None:
    origin = headers.get("origin")
    if origin is None or origin in origins or "*" in origins:
        return
    if origin.partition("://")[2] != headers.get("host"):
        message = "A page may upload files only from an origin of --cors-origins."
        raise ApiError("unsupported_media_type", message)


def _too_large(max_bytes: int) -> ApiError:
    message = f"The file has more than {max_bytes} bytes. Send a smaller one."
    return ApiError("file_too_large", message, param="file")
