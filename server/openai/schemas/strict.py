"""The base of all request models: a wrong type or an unknown field is an error, never a guess."""

from pydantic import BaseModel, ConfigDict, Tag
from pydantic_core import PydanticCustomError

# Names of union members in pydantic's error locations; `parse.path` leaves them out.
STRING, ARRAY, OBJECT = Tag("<string>"), Tag("<array>"), Tag("<object>")


class Strict(BaseModel):
    """See the module."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        protected_namespaces=(),
    )


def not_empty(text: str) -> str:
    """The text. (Pydantic's `min_length` counts the characters of 4 MB of base64.)"""
    if not text:
        raise PydanticCustomError("string_too_short", "String should have at least 1 character")
    return text
