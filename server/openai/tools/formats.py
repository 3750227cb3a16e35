"""How models write tool calls: one row for each form that their chat templates are written in.

Every form is a marker, something before the JSON, the JSON, and a closing marker. Knows the text;
nothing about requests. A form that has no row is not guessed at.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from json import dumps
from typing import Any

from pydantic_core import from_json

MAX_HEAD_CHARACTERS = 128  # between the marker and the JSON


class MalformedCallError(ValueError):
    """Text that is not a call after all."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call: the tool's name, and its arguments as the text of a JSON object."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class CallFormat:
    """One row. `marker` opens one call, or all of them; `json_opener` begins the JSON.

    `named_before`: what stands between the tool's name and its arguments, where the name is not in
    the JSON. `id_characters`: templates that insist on ids of so many letters and digits.
    """

    name: str
    marker: str
    json_opener: str
    closing: str = ""
    named_before: str = ""
    id_characters: int | None = None

    def head_may_go_on(self, head: str) -> bool:
        """Whether `head`, the text after the marker, may still lead to JSON."""
        if len(head) > MAX_HEAD_CHARACTERS:
            return False
        return bool(self.named_before) or not head.strip()

    def calls(self, head: str, json: str) -> Iterator[Call]:
        """The calls of one block. Raises `MalformedCallError`."""
        try:
            value = from_json(json, allow_inf_nan=False)
        except ValueError:
            raise MalformedCallError from None
        if self.named_before:
            found = re.fullmatch(rf"\s*([\w-]+){re.escape(self.named_before)}\s*", head)
            if found is None:
                raise MalformedCallError
            value = {"name": found[1], "arguments": value}
        for each in value if isinstance(value, list) else [value]:
            yield _call(each)


FORMATS = (
    CallFormat("hermes", "<tool_call>", "{", closing="</tool_call>"),  # Qwen, InternVL on Qwen
    CallFormat("mistral", "[TOOL_CALLS]", "[", id_characters=9),
    CallFormat("mistral-args", "[TOOL_CALLS]", "{", named_before="[ARGS]", id_characters=9),
)


def _call(value: Any) -> Call:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise MalformedCallError
    arguments = value.get("arguments", {})
    if not isinstance(arguments, dict):
        raise MalformedCallError
    try:
        text = dumps(arguments, ensure_ascii=False, allow_nan=False)
    except ValueError:  # 1e999, or an integer of thousands of digits
        raise MalformedCallError from None
    return Call(value["name"], text)
