"""How each field of the API is treated: honoured, accepted because it is harmless, or refused.

Every field of a request model carries one of three markers in its annotation, and the table in the
documentation is read back from them: a field cannot be forgotten, nor treated in another way.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

Treatment = Literal["honoured", "accepted", "refused"]
Json = str | int | float | bool | None | list[Any] | dict[str, Any]


@dataclass(frozen=True, slots=True)
class Honoured:
    """The field does what OpenAI's documentation says, or `note` says what it does."""

    note: str = ""

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return _described(handler(schema), self.note)


@dataclass(frozen=True, slots=True)
class Accepted:
    """The field is valid and changes nothing here; `note` says why that is harmless."""

    note: str

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return _described(handler(schema), f"changes nothing: {self.note}")


@dataclass(frozen=True, slots=True)
class Refused:
    """The field cannot be honoured: only `null` and `neutral` values, which ask nothing, pass."""

    note: str
    neutral: tuple[Json, ...] = ()

    def check(self, value: object) -> object:
        """`value` where it asks for nothing; else an error that says what is possible."""
        if value is None or any(same(value, neutral) for neutral in self.neutral):
            return value
        raise PydanticCustomError("unsupported_parameter", "{note}", {"note": self.note})

    def __get_pydantic_core_schema__(self, _: Any, __: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, core_schema.any_schema())

    def __get_pydantic_json_schema__(
        self, _: CoreSchema, __: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"enum": [*self.neutral, None], "description": self.note}


Marker = Honoured | Accepted | Refused


@dataclass(frozen=True, slots=True)
class FieldRow:
    """One line of the table."""

    name: str
    treatment: Treatment
    note: str


def field_table(model: type[BaseModel]) -> Iterator[FieldRow]:
    """The fields of a request model in order. A field without a marker is a bug of ours."""
    for name, info in model.model_fields.items():
        marker = next((m for m in info.metadata if isinstance(m, Marker)), None)
        match marker:
            case Honoured(note):
                yield FieldRow(name, "honoured", note)
            case Accepted(note):
                yield FieldRow(name, "accepted", note)
            case Refused(note, neutral):
                passes = ", ".join(f"`{_show(value)}`" for value in neutral)
                yield FieldRow(name, "refused", f"{note} Passes: {passes}." if passes else note)
            case None:
                raise AssertionError(f"{model.__name__}.{name} has no marker")


def markdown_table(model: type[BaseModel]) -> str:
    """The table as the documentation shows it."""
    rows = [f"| `{row.name}` | {row.treatment} | {row.note} |" for row in field_table(model)]
    return "\n".join(["| Field | Treatment | Note |", "|---|---|---|", *rows])


def same(value: object, neutral: Json) -> bool:
    """Equal as JSON: `1` is `1.0`, but never `true`."""
    return isinstance(value, bool) == isinstance(neutral, bool) and value == neutral


def _described(schema: dict[str, Any], note: str) -> dict[str, Any]:
    """The JSON schema of a field with its note, which `/docs` shows."""
    return {**schema, "description": note} if note else schema


def _show(value: Json) -> str:
    return json.dumps(value)
