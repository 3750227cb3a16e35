"""From the items of a response's input to the messages of a chat.

    instructions                        a system message
    message                             a message of its role
    function_call, function_call, ...   the calls of the assistant's message before, or of a new one
    function_call_output                a tool's message
    reasoning                           nothing: what was thought is not shown again

Messages are what chats may have, checked by their own models; `Places` says where in the input each
came from, for errors speak of chats. Knows shapes; nothing about stores or HTTP.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, assert_never

from server.api_errors import ApiError
from server.openai.schemas.input_items import (
    FunctionCall,
    FunctionCallOutput,
    InputFile,
    InputImage,
    InputMessage,
    InputText,
    Item,
    OutputRefusal,
    OutputText,
    ReasoningItem,
)

ItemPart = InputText | InputImage | InputFile | OutputText | OutputRefusal
Placed = tuple[str, Item]  # where in the request an item is, as errors call it

NOT_A_CHATS = {"type", "prompt_cache_breakpoint"}
EARLIER = "previous_response_id"
_MESSAGE = re.compile(r"messages\[(\d+)\](.*)", re.DOTALL)
_CALL = re.compile(r"\.tool_calls\[(\d+)\](?:\.function)?(.*)", re.DOTALL)
_PART = re.compile(r"\.content(\[\d+\])(?:\.image_url(?:\.url)?|\.file)?(.*)", re.DOTALL)


@dataclass(slots=True)
class Place:
    """Where one message came from: `path`, and the paths of the calls that were added to it."""

    path: str
    content: str = ".content"  # what its content is called there
    calls: list[str] = field(default_factory=list)

    def of(self, rest: str) -> str:
        """What stands behind `messages[n]` in a chat's error, as the input's path."""
        if self.path in (EARLIER, "instructions", "input"):
            return self.path
        if (call := _CALL.fullmatch(rest)) and int(call[1]) < len(self.calls):
            path, rest = self.calls[int(call[1])], call[2]
            return path if path == EARLIER else path + rest.replace(".id", ".call_id")
        if part := _PART.fullmatch(rest):
            return f"{self.path}{self.content}{part[1]}{part[2] or self._medium(rest)}"
        if rest == ".tool_calls":
            return self.calls[0]
        renamed = {".content": self.content, ".tool_call_id": ".call_id"}
        return self.path + renamed.get(rest, "" if rest == ".role" else rest)

    @staticmethod
    def _medium(rest: str) -> str:
        return ".image_url" if ".image_url" in rest else ""


@dataclass(slots=True)
class Translated:
    """A chat's messages as they would be sent, and where each came from."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)

    def param(self, param: str | None) -> str | None:
        """A chat's param as the response's client knows it."""
        found = _MESSAGE.fullmatch(param or "")
        if found is None or int(found[1]) >= len(self.places):
            return "input" if param == "messages" or found else param
        return self.places[int(found[1])].of(found[2])

    def add(self, place: Place, message: dict[str, Any]) -> None:
        """One more message."""
        self.messages.append(message)
        self.places.append(place)


def translated(instructions: str | None, items: Iterable[Placed]) -> Translated:
    """The chat of a response. Raises `ApiError` for parts where they cannot be."""
    found = Translated()
    if instructions:
        found.add(Place("instructions"), {"role": "system", "content": instructions})
    for path, item in items:
        _add(found, path, item)
    return found


def _add(found: Translated, path: str, item: Item) -> None:
    if isinstance(item, InputMessage):
        message = {"role": item.role, "content": _content(item.content, item.role, path)}
        found.add(Place(path), message)
    elif isinstance(item, FunctionCall):
        if not found.messages or found.messages[-1]["role"] != "assistant":
            found.add(Place(path), {"role": "assistant", "content": None})
        function = {"name": item.name, "arguments": item.arguments}
        call = {"id": item.call_id, "type": "function", "function": function}
        found.messages[-1].setdefault("tool_calls", []).append(call)
        found.places[-1].calls.append(path)
    elif isinstance(item, FunctionCallOutput):
        content = _content(item.output, "tool", path)
        message = {"role": "tool", "tool_call_id": item.call_id, "content": content}
        found.add(Place(path, ".output"), message)
    else:
        assert isinstance(item, ReasoningItem)


def _content(content: str | Sequence[ItemPart], role: str, path: str) -> object:
    if isinstance(content, str):
        return content
    if role == "assistant" and not content:
        return None
    name = "output" if role == "tool" else "content"
    parts = []
    for n, part in enumerate(content):
        where = EARLIER if path == EARLIER else f"{path}.{name}[{n}]"
        if (role == "assistant") != isinstance(part, OutputText | OutputRefusal):
            allowed = "output_text and refusal" if role == "assistant" else "input_* parts"
            message = f"A message of the {role} has {allowed}, not {part.type!r}."
            raise ApiError("invalid_value", message, param=f"{where}.type")
        if role == "tool" and not isinstance(part, InputText):
            message = f"'{where}' is not supported here. What a function answers is text."
            raise ApiError("unsupported_parameter", message, param=where)
        parts.append(_part(part, where))
    return parts


def _part(part: ItemPart, where: str) -> dict[str, Any]:
    match part:
        case InputText() | OutputText():
            return {"type": "text", "text": part.text}
        case OutputRefusal():
            return {"type": "refusal", "refusal": part.refusal}
        case InputImage():
            if part.file_id is not None and part.image_url is None:
                return {"type": "file", "file": _fields(part)}
            _check_image(part, where)
            fields = _fields(part)
            return {"type": "image_url", "image_url": {"url": fields.pop("image_url"), **fields}}
        case InputFile():
            return {"type": "file", "file": _fields(part)}
        case _:
            assert_never(part)


def _fields(part: InputImage | InputFile) -> dict[str, Any]:
    """Those that are given, under the names that they have in a chat's part, too."""
    return part.model_dump(exclude=NOT_A_CHATS, exclude_none=True)


def _check_image(part: InputImage, where: str) -> None:
    """Raises `ApiError` where it is not one image."""
    if part.image_url is None:
        message = f"Missing required parameter: '{where}.image_url'."
        raise ApiError("missing_required_parameter", message, param=f"{where}.image_url")
    if part.file_id is not None:
        message = "An image has an 'image_url' or a 'file_id', not both."
        raise ApiError("invalid_value", message, param=f"{where}.file_id")
