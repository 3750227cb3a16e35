"""Messages as chat templates take them: roles, text, placeholders for images, calls of tools.

Each kind of part gives template parts of its own, in its place: text is text, and every picture of
a part that has any is its label (a line of text, where it has one) and an image. Knows what
templates expect; nothing about where pictures come from.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from server.openai.request.media_parts import Place
from server.openai.request.pictures import Pictures
from server.openai.schemas.requests import (
    AssistantMessage,
    Message,
    RefusalPart,
    TextPart,
    ToolMessage,
)
from server.openai.tools.checks import template_calls
from server.openai.tools.template_support import Dialect

TemplatePart = dict[str, str]


def template_messages(
    messages: Sequence[Message], dialect: Dialect | None, pictures: Mapping[Place, Pictures]
) -> list[dict[str, Any]]:
    """The conversation, in its order. A tool's answer names its tool, which some templates show."""
    template: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for m, message in enumerate(messages):
        role = "system" if message.role == "developer" else message.role
        parts = list(_template_parts(message, m, pictures))
        turn: dict[str, Any] = {"role": role, "content": parts}
        if dialect is not None and isinstance(message, AssistantMessage) and message.tool_calls:
            turn["content"] = dialect.content(_text(parts))
            turn["tool_calls"] = list(template_calls(message.tool_calls, dialect))
            names |= {call.id: call.function.name for call in message.tool_calls}
        if dialect is not None and isinstance(message, ToolMessage):
            turn["content"] = dialect.content(_text(parts))
            turn["tool_call_id"] = dialect.call_id(message.tool_call_id)
            turn["name"] = names[message.tool_call_id]
        template.append(turn)
    return template


def _template_parts(
    message: Message, m: int, pictures: Mapping[Place, Pictures]
) -> Iterator[TemplatePart]:
    if isinstance(message.content, str):
        yield _text_part(message.content)
        return
    if message.content is None and isinstance(message, AssistantMessage) and message.refusal:
        yield _text_part(message.refusal)
    for p, part in enumerate(message.content or ()):
        if isinstance(part, TextPart):
            yield _text_part(part.text)
        elif isinstance(part, RefusalPart):
            yield _text_part(part.refusal)
        else:
            yield from _picture_parts(pictures[m, p], first=not p)


def _text_part(text: str) -> TemplatePart:
    return {"type": "text", "text": text}


def _picture_parts(pictures: Pictures, *, first: bool) -> Iterator[TemplatePart]:
    """A label is a line of its own, whatever template joins it to its neighbours."""
    for n, picture in enumerate(pictures):
        if picture.label is not None:
            before = "" if first and not n else "\n"
            yield _text_part(f"{before}{picture.label}\n")
        yield {"type": "image"}


def _text(parts: Sequence[TemplatePart]) -> str:
    return "".join(part.get("text", "") for part in parts)
