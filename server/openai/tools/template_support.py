"""How a model shows tools and writes calls: found out once, by rendering its chat template.

A conversation that contains a call is rendered, and read back with the reader of each format. What
reads back as that very call is how the model writes calls; without a marker, only where it stands
right after what is rendered for the model to go on from. A template that does not show tools, or
writes calls in a form that has no row, gets a reason instead: requests with tools are refused.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from lookm.errors import LookmError
from server.openai.protocols import ChatProcessor
from server.openai.tools.formats import FORMATS, Call, CallFormat
from server.openai.tools.reader import CallReader, with_calls

NAME, QUESTION, ANSWER = "look_up_weather", "Will it rain?", "mild and dry"
TOOL = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
    },
}
ARGUMENTS = {"town": "Oslo"}
CALL_ID = "a1b2c3d4e"


@dataclass(frozen=True, slots=True)
class Dialect:
    """`form` is how calls are written; `in_parts`: contents of turns beside calls are lists."""

    form: CallFormat
    in_parts: bool

    def content(self, text: str) -> str | list[dict[str, str]]:
        """The text of a turn with calls, or of a tool, as the template takes it."""
        return [{"type": "text", "text": text}] if self.in_parts else text

    def call_id(self, given: str) -> str:
        """A client's id as the template takes it."""
        num_characters = self.form.id_characters
        fits = given.isascii() and given.isalnum() and len(given) == num_characters
        if num_characters is None or fits:
            return given
        return sha256(given.encode("utf-8", "surrogatepass")).hexdigest()[:num_characters]


@dataclass(frozen=True, slots=True)
class ToolSupport:
    """What a model can do with tools: a dialect, or the reason why there is none."""

    dialect: Dialect | None
    reason: str = ""


def tool_support(processor: ChatProcessor) -> ToolSupport:
    """Try the chat template."""
    question = {"role": "user", "content": [{"type": "text", "text": QUESTION}]}
    prompt = _rendered(processor, [question])
    if NAME not in prompt:
        return ToolSupport(None, "The model's chat template does not show tools.")
    for in_parts in (True, False):
        for form in FORMATS:
            dialect = Dialect(form, in_parts)
            rendered = _rendered(processor, _conversation(question, dialect))
            if form.bare and rendered.startswith(prompt):
                rendered = rendered[len(prompt) :]
            if _reads_back(rendered, form):
                return ToolSupport(dialect)
    return ToolSupport(None, "The model's chat template writes tool calls in an unknown form.")


def _conversation(question: Mapping[str, Any], dialect: Dialect) -> list[Mapping[str, Any]]:
    call = {"name": NAME, "arguments": ARGUMENTS}
    return [
        question,
        {
            "role": "assistant",
            "content": dialect.content(""),
            "tool_calls": [{"id": CALL_ID, "type": "function", "function": call}],
        },
        {
            "role": "tool",
            "name": NAME,
            "tool_call_id": CALL_ID,
            "content": dialect.content(ANSWER),
        },
        {"role": "assistant", "content": [{"type": "text", "text": "No."}]},
        question,
    ]


def _rendered(processor: ChatProcessor, messages: Sequence[Mapping[str, Any]]) -> str:
    try:
        return processor.rendered(messages, [TOOL])
    except LookmError:
        return ""


def _reads_back(rendered: str, form: CallFormat) -> bool:
    """Whether the call is there, and the tool's answer as it is and not as a list."""
    reader = CallReader(form, (NAME,))
    found = with_calls([*reader.push(rendered), *reader.finish()])
    calls = [each for each in found if isinstance(each, Call)]
    as_list = any(f"text{quote}: {quote}{ANSWER}" in rendered for quote in "'\"")
    return [_read(call) for call in calls] == [ARGUMENTS] and ANSWER in rendered and not as_list


def _read(call: Call) -> object:
    try:
        return json.loads(call.arguments)
    except ValueError:
        return None
