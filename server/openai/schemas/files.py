"""Files: in a content part, as an upload answers, as they are listed. OpenAI's shapes."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

from server.openai.schemas.fields import Accepted, Honoured
from server.openai.schemas.images import Detailed, MaxTokens
from server.openai.schemas.strict import Strict
from server.openai.schemas.usage import Answer

PURPOSES = ("user_data", "vision")
MAX_FILENAME = 512  # characters
PAGES = r"^[1-9][0-9]{0,6}(-[1-9][0-9]{0,6})?(,[1-9][0-9]{0,6}(-[1-9][0-9]{0,6})?)*$"
PAGES_SCHEMA: dict[str, JsonValue] = {"pattern": PAGES}
SOURCES = ("file_data", "file_id", "file_url")


def pages_named(text: str) -> str:
    """The text, where it names pages. (Pydantic would show the pattern.)"""
    if not re.fullmatch(PAGES.strip("^$"), text):
        raise PydanticCustomError(
            "pages", "It should be numbers and ranges of pages, counted from 1, as in '1-3,7'"
        )
    return text


class FileContent(Strict):
    """A PDF, whose pages become images, or an image; in one of three ways."""

    file_data: Annotated[
        str | None, Honoured("`data:application/pdf;base64,...`; what it is, its bytes say")
    ] = None
    file_id: Annotated[
        Annotated[str, Field(max_length=128)] | None,
        Honoured("of an upload (`POST /v1/files`) with the same API key"),
    ] = None
    file_url: Annotated[str | None, Honoured("extension: http or https, as for images")] = None
    pages: Annotated[
        Annotated[
            str,
            Field(max_length=1024, json_schema_extra=PAGES_SCHEMA),
            AfterValidator(pages_named),
        ]
        | None,
        Honoured("extension: those that are wanted, as in `1-3,7`; else all"),
    ] = None
    filename: Annotated[
        Annotated[str, Field(max_length=MAX_FILENAME)] | None,
        Accepted("the model does not see it"),
    ] = None
    detail: Detailed = None
    max_tokens_per_image: MaxTokens = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        """Where the bytes are is said once."""
        if sum(bool(getattr(self, name)) for name in SOURCES) != 1:
            raise PydanticCustomError(
                "file_source", "It should have one of {names}", {"names": ", ".join(SOURCES)}
            )
        return self

    @property
    def source(self) -> str:
        """The name of the field that says where the bytes are."""
        return next(name for name in SOURCES if getattr(self, name))


class FilePart(Strict):
    """A document, at this place of the text: each page is a line "Page 3" and an image."""

    type: Annotated[Literal["file"], Honoured()]
    file: Annotated[FileContent, Honoured()]
    prompt_cache_breakpoint: Annotated[object, Accepted("a hint for OpenAI's prompt cache")] = None


class FileObject(Answer):
    """An uploaded file."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"]


class FileList(Answer):
    """Uploaded files, the newest first unless asked otherwise."""

    object: Literal["list"]
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(Answer):
    """One that is gone."""

    id: str
    object: Literal["file"]
    deleted: bool
