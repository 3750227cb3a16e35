"""The base of all request models: a wrong type or an unknown field is an error, never a guess.

An unknown field that is null is none: clients send back what other servers' answers had.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Tag,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

# Names of union members in pydantic's error locations; `parse.path` leaves them out.
STRING, NUMBER = Tag("<string>"), Tag("<number>")
ARRAY, OBJECT = Tag("<array>"), Tag("<object>")


class Strict(BaseModel):
    """See the module."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        protected_namespaces=(),
    )

    @model_validator(mode="before")
    @classmethod
    def _null_says_nothing(cls, value: Any) -> Any:
        """The object without the fields that we do not know and that are null."""
        if not isinstance(value, dict) or value.keys() <= cls._names():
            return value
        return {name: v for name, v in value.items() if v is not None or name in cls._names()}

    @classmethod
    @cache
    def _names(cls) -> frozenset[str]:
        return frozenset(info.alias or name for name, info in cls.model_fields.items())


@dataclass(frozen=True, slots=True)
class AtMost:
    """An object of so many entries at most: counted before any of them is looked at."""

    entries: int

    def check(self, value: object) -> object:
        """The value, whatever it is, unless it is an object with more entries."""
        if isinstance(value, dict) and len(value) > self.entries:
            raise PydanticCustomError(
                "too_many_entries",
                "It has {count} entries; at most {most} are allowed",
                {"count": len(value), "most": self.entries},
            )
        return value

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {**handler(schema), "maxProperties": self.entries}


def not_empty(text: str) -> str:
    """The text. (Pydantic's `min_length` counts the characters of 4 MB of base64.)"""
    if not text:
        raise PydanticCustomError("string_too_short", "String should have at least 1 character")
    return text
