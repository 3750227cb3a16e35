"""How much text a request may have: what the model's context can hold, and never less.

Knows characters only, so that what cannot fit is refused before anything is rendered or tokenized,
in a time that does not grow with it. Text that every chat template shows (of users, systems and
tools) is measured against the context: `tokens * characters of the longest token`, white space at
its ends left out, which templates trim. What a template may leave out (earlier answers, parts of
the tools) has a bound of its own, `MAX_HIDDEN_CHARACTERS` or the context's, whichever is larger.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lookm.errors import PromptTooLongError
from server.api_errors import ApiError
from server.openai.schemas.requests import (
    AssistantMessage,
    JsonSchemaFormat,
    Message,
    RefusalPart,
    TextPart,
)
from server.openai.schemas.tools import Tool

MAX_HIDDEN_CHARACTERS = 2**20
PIECE_CHARACTERS = 2**16
MAX_SCHEMA_CHARACTERS = 2**16  # the grammar compiler's limit of a schema that is written as JSON


@dataclass(frozen=True, slots=True)
class TextLimit:
    """What fits a context of `context_tokens`, each for at most `token_characters` of text."""

    context_tokens: int
    token_characters: int

    @property
    def max_characters(self) -> int:
        """More than these cannot be in one context."""
        return self.context_tokens * self.token_characters

    @property
    def max_bytes(self) -> int:
        """Of such text as JSON, whose longest character is two escapes."""
        return 12 * self.max_characters

    def check_prompt(self, text: str) -> None:
        """Of a text completion. Raises `PromptTooLongError`."""
        self._check("prompt", len(text), self.max_characters)

    def check_chat(self, messages: Sequence[Message], tools: Sequence[Tool]) -> None:
        """Of a chat. Raises `PromptTooLongError`."""
        shown, hidden = self.max_characters, max(self.max_characters, MAX_HIDDEN_CHARACTERS)
        turns = [m for m in messages if not isinstance(m, AssistantMessage)]
        self._check("messages", _measured(_texts(turns), shown), shown)
        answers = [m for m in messages if isinstance(m, AssistantMessage)]
        self._check("messages", sum(map(len, _written(answers))), hidden)
        described = sum(_described(tool, hidden) for tool in tools)
        self._check("tools", described, hidden)

    def _check(self, param: str, num_characters: int, max_characters: int) -> None:
        if num_characters > max_characters:
            raise PromptTooLongError(
                f"The text of '{param}' has {num_characters} characters or more; with a context of "
                f"{self.context_tokens} tokens at most {max_characters} are allowed: shorten it.",
                param=param,
            )


def check_schema(form: object) -> None:
    """Refuse a schema that is too large before it is written out. Raises `ApiError`."""
    if not isinstance(form, JsonSchemaFormat):
        return
    num_characters = count_characters(form.json_schema.schema_, MAX_SCHEMA_CHARACTERS)
    if num_characters > MAX_SCHEMA_CHARACTERS:
        message = (
            f"The schema of 'response_format' has {num_characters} characters or more; at most "
            f"{MAX_SCHEMA_CHARACTERS} are allowed."
        )
        raise ApiError("invalid_value", message, param="response_format")


def count_characters(value: Any, enough: int) -> int:
    """The characters of the strings in a JSON value, other values as one each.

    Written as JSON it has at least so many. Counting ends where there are more than `enough`.
    """
    total, waiting = 0, [iter((value,))]
    while waiting and total <= enough:
        each = next(waiting[-1], waiting)
        if each is waiting:
            waiting.pop()
        elif isinstance(each, Mapping):
            total += 1
            waiting.append(_flat(each))
        elif isinstance(each, list):
            total += 1
            waiting.append(iter(each))
        else:
            total += len(each) if isinstance(each, str) else 1
    return total


def _flat(mapping: Mapping[str, Any]) -> Iterator[Any]:
    """Keys and values."""
    for key, value in mapping.items():
        yield key
        yield value


def _texts(messages: Iterable[Message]) -> Iterator[str]:
    for message in messages:
        if isinstance(message.content, str):
            yield message.content
        else:
            yield from (part.text for part in message.content or () if isinstance(part, TextPart))


def _measured(texts: Iterable[str], enough: int) -> int:
    """The characters of all, as they are where that is not more than `enough`; else trimmed."""
    listed = list(texts)
    as_they_are = sum(map(len, listed))
    return as_they_are if as_they_are <= enough else sum(map(_trimmed_length, listed))


def _trimmed_length(text: str) -> int:
    """`len(text.strip())`, without a copy of 100 MB."""
    start, end = 0, len(text)
    while start < end and not (piece := text[start : start + PIECE_CHARACTERS].lstrip()):
        start += PIECE_CHARACTERS
    if start >= end:
        return 0
    start += len(text[start : start + PIECE_CHARACTERS]) - len(piece)
    while not (piece := text[max(start, end - PIECE_CHARACTERS) : end].rstrip()):
        end -= PIECE_CHARACTERS
    return max(start, end - PIECE_CHARACTERS) + len(piece) - start


def _written(answers: Sequence[AssistantMessage]) -> Iterator[str]:
    """What the model wrote earlier: text and calls."""
    yield from _texts(answers)
    for answer in answers:
        yield answer.refusal or ""
        if not isinstance(answer.content, str):
            parts = answer.content or ()
            yield from (part.refusal for part in parts if isinstance(part, RefusalPart))
        yield from (call.function.arguments for call in answer.tool_calls or ())


def _described(tool: Tool, enough: int) -> int:
    function = tool.function
    return len(function.description or "") + count_characters(function.parameters, enough)
