"""How models write tool calls: one row for each form that their chat templates are written in.

Every form is a marker, something before the JSON, the JSON, and a closing marker. Knows the text;
nothing about requests. A form that has no row is not guessed at.
"""

import re
from dataclasses import dataclass
from json import dumps
from typing import Any

from pydantic_core import from_json

MAX_HEAD_CHARACTERS = 128  # between the marker and the JSON


@dataclass(frozen=True, slots=True)
class Call:
    """One call: the tool's name, and its arguments as the text of a JSON object."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class CallFormat:
    """One row. `marker` opens one call, or all of them; `json_opener` begins the JSON.

    `named_before`: what stands between the tool's name and its arguments, where the name is not in
    the JSON; `arguments`: their key, where it is. `bare`: an answer may be the JSON of one call,
    without the marker. `id_characters`: templates that insist on ids of so many letters and digits.
    """

    name: str
    marker: str
    json_opener: str
    closing: str = ""
    named_before: str = ""
    arguments: str = "arguments"
    bare: bool = False
    id_characters: int | None = None

    def head_may_go_on(self, head: str) -> bool:
        """Whether `head`, the text after the marker, may still lead to JSON."""
        if len(head) > MAX_HEAD_CHARACTERS:
            return False
        return bool(self.named_before) or not head.strip()

    def name_in_head(self, head: str) -> str | None:
        """The tool's name where it stands before the JSON, which is then its arguments."""
        found = re.fullmatch(rf"\s*([\w-]+){re.escape(self.named_before)}\s*", head)
        return found and found[1]

    def name_in_json(self, begun: str) -> str | None:
        """The tool's name where it and the key of its arguments have come.

        >>> HERMES.name_in_json('{"name": "f", "arguments": ')
        'f'
        """
        value = _object(begun + "null}")
        return _name(value) if list(value)[-1:] == [self.arguments] else None

    def call(self, json: str) -> Call | None:
        """The call that a whole JSON object is; None where it is none."""
        value = _object(json)
        name, arguments = _name(value), value.get(self.arguments, None if self.bare else {})
        if name is None or not isinstance(arguments, dict):
            return None
        try:
            return Call(name, dumps(arguments, ensure_ascii=False, allow_nan=False))
        except ValueError:  # 1e999, or an integer of thousands of digits
            return None


HERMES = CallFormat("hermes", "<tool_call>", "{", closing="</tool_call>")  # Qwen, InternVL on Qwen
MISTRAL = CallFormat("mistral", "[TOOL_CALLS]", "[", id_characters=9)
MISTRAL_ARGS = CallFormat(
    "mistral-args", "[TOOL_CALLS]", "{", named_before="[ARGS]", id_characters=9
)
LLAMA = CallFormat("llama", "<|python_tag|>", "{", arguments="parameters", bare=True)

FORMATS = (HERMES, MISTRAL, MISTRAL_ARGS, LLAMA)


def _object(json: str) -> dict[str, Any]:
    """The JSON object; an empty one for any other text."""
    try:
        value = from_json(json, allow_inf_nan=False)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _name(value: dict[str, Any]) -> str | None:
    name = value.get("name")
    return name if isinstance(name, str) else None
