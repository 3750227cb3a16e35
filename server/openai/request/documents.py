"""From a `file` part to what the media loader takes: a URL, or the bytes of an upload.

What speaks of files in another way (`input_file` of the Responses API) becomes a `FilePart`, and
then this. Knows where files are; what is in them `server.media` sees.
"""

from dataclasses import dataclass

from server.api_errors import ApiError
from server.file_store import FileStore
from server.media import File
from server.openai.schemas.files import FilePart
from server.turns import current_owner


@dataclass(frozen=True, slots=True)
class Document:
    """How the URL of a media part is meant, which is a file's: two parts alike are loaded once."""

    uploaded: bool  # the URL is an id
    pages: str | None


def located(part: FilePart) -> tuple[str, str, Document]:
    """The field that says where the file is, below its part; its URL or id; how that is meant."""
    content, name = part.file, part.file.source
    url = str(getattr(content, name)).strip()
    return f"file.{name}", url, Document(name == "file_id", content.pages)


def as_file(url: str, document: Document, param: str, files: FileStore) -> File:
    """The file for the loader. Raises `ApiError` where it is no upload of the request's API key."""
    if not document.uploaded:
        _check_scheme(url, param)
        return File(url, pages=document.pages)
    found = files.get(current_owner().key, url)
    if found is None:
        message = (
            "There is no such file, of this API key, or not any more: they are kept in memory, "
            "within a limit. Upload it again."
        )
        raise ApiError("file_not_found", message, param=param)
    return File(data=found.data, pages=document.pages)


def _check_scheme(url: str, param: str) -> None:
    """`file_data` holds a data: URL, and `file_url` another: neither reads the other's."""
    is_data = url[:5].lower() == "data:"
    if param.endswith(".file_data") and not is_data:
        message = "'file_data' must read data:application/pdf;base64,<data>."
        raise ApiError("invalid_file_url", message, param=param)
    if param.endswith(".file_url") and is_data:
        message = "'file_url' must start with https:// or http://; a data: URL is 'file_data'."
        raise ApiError("invalid_file_url", message, param=param)
