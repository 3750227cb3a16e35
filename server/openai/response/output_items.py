"""A response's items as they are written: what the model thinks, what it says, what it calls.

    nothing --text of a kind--> item.added, part.added --> delta ... --> done, part.done, item.done

One item is open at a time; text of another kind closes it. Each step is an `ItemEvent`, an event of
OpenAI's stream without its number; a whole answer is what is left when all have happened. Knows
shapes; nothing about how they are framed.
"""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.openai.schemas.answers import Delta
from server.openai.schemas.logprobs import Entry
from server.openai.schemas.response_answers import (
    CallAnswer,
    ItemStatus,
    MessageAnswer,
    OutputAnswer,
    OutputTextAnswer,
    ReasoningAnswer,
    ReasoningText,
)
from server.openai.schemas.usage import Answer

ItemEvent = tuple[str, dict[str, Any]]  # its type, and its fields


@dataclass(slots=True)
class OutputItems:
    """The output of one response. `reasoning_tokens` were generated before anything else was."""

    output: list[OutputAnswer] = field(default_factory=list)
    reasoning_tokens: int = 0
    _open: OutputAnswer | None = None
    _pieces: list[str] = field(default_factory=list)  # of the open item's text
    _entries: list[Entry] = field(default_factory=list)  # of the open item's tokens
    _waiting: list[Entry] = field(default_factory=list)  # of tokens whose text is held back

    def add(
        self, deltas: Sequence[Delta], entries: Sequence[Entry], num_generated: int
    ) -> Iterator[ItemEvent]:
        """What a token adds, and its log-probabilities; it is the `num_generated`th."""
        self._waiting += entries
        for delta in deltas:
            if delta.reasoning_content:
                yield from self._write(ReasoningAnswer, delta.reasoning_content)
                self.reasoning_tokens = num_generated
            for call in delta.tool_calls or ():
                if call.id is not None:
                    yield from self._begin_call(call.id, call.function.name or "")
                if call.function.arguments:
                    yield self._delta(call.function.arguments)
            if delta.content:
                yield from self._write(MessageAnswer, delta.content)
        if self._open is not None and not isinstance(self._open, MessageAnswer):
            self._waiting = []  # of tags and calls

    def end(self, status: ItemStatus) -> Iterator[ItemEvent]:
        """Close what is open; an answer without any item is an empty message."""
        if not self.output and self._open is None:
            yield from self._begin(_message())
        self._entries += self._waiting  # of a message, if that is open
        yield from self._close(status)

    def partial(self) -> list[OutputAnswer]:
        """The output as it is, of a response that fails."""
        for _ in self._close("incomplete"):
            pass
        return self.output

    def _write(
        self, kind: type[MessageAnswer] | type[ReasoningAnswer], text: str
    ) -> Iterator[ItemEvent]:
        if not isinstance(self._open, kind):
            yield from self._close("completed")
            yield from self._begin(_message() if kind is MessageAnswer else _reasoning())
        yield self._delta(text)

    def _begin_call(self, call_id: str, name: str) -> Iterator[ItemEvent]:
        yield from self._close("completed")
        yield from self._begin(
            CallAnswer(
                id=_new_id("fc"),
                type="function_call",
                status="in_progress",
                call_id=call_id,
                name=name,
                arguments="",
            )
        )

    def _begin(self, item: OutputAnswer) -> Iterator[ItemEvent]:
        self._open, self._pieces, self._entries = item, [], []
        yield "response.output_item.added", {"output_index": len(self.output), "item": item}
        if (part := _part(item, "", [])) is not None:
            yield "response.content_part.added", self._placed() | {"part": part}

    def _delta(self, text: str) -> ItemEvent:
        entries, self._waiting = self._waiting, []
        self._pieces.append(text)
        fields = self._placed() | {"delta": text}
        if isinstance(self._open, MessageAnswer):
            self._entries += entries
            fields["logprobs"] = [entry.model_dump() for entry in entries]
        return f"response.{_kind(self._open)}.delta", fields

    def _close(self, status: ItemStatus) -> Iterator[ItemEvent]:
        item, text = self._open, "".join(self._pieces)
        if item is None:
            return
        placed, part = self._placed(), _part(item, text, self._entries)
        done = placed | ({"arguments": text} if part is None else {"text": text})
        if isinstance(item, MessageAnswer):
            done["logprobs"] = [entry.model_dump() for entry in self._entries]
        yield f"response.{_kind(item)}.done", done
        if part is not None:
            yield "response.content_part.done", placed | {"part": part}
        item = item.model_copy(update={"status": status, **_whole(part, text)})
        yield "response.output_item.done", {"output_index": len(self.output), "item": item}
        self.output.append(item)
        self._open = None

    def _placed(self) -> dict[str, Any]:
        assert self._open is not None
        placed = {"item_id": self._open.id, "output_index": len(self.output)}
        return placed if isinstance(self._open, CallAnswer) else placed | {"content_index": 0}


def _kind(item: OutputAnswer | None) -> str:
    """What the item's text is called in events."""
    if isinstance(item, CallAnswer):
        return "function_call_arguments"
    return "output_text" if isinstance(item, MessageAnswer) else "reasoning_text"


def _part(item: OutputAnswer, text: str, entries: Sequence[Entry]) -> Answer | None:
    if isinstance(item, MessageAnswer):
        return OutputTextAnswer(
            type="output_text", text=text, annotations=[], logprobs=list(entries)
        )
    if isinstance(item, ReasoningAnswer):
        return ReasoningText(type="reasoning_text", text=text)
    return None


def _whole(part: Answer | None, text: str) -> dict[str, Any]:
    return {"arguments": text} if part is None else {"content": [part]}


def _message() -> MessageAnswer:
    return MessageAnswer(
        id=_new_id("msg"), type="message", role="assistant", status="in_progress", content=[]
    )


def _reasoning() -> ReasoningAnswer:
    return ReasoningAnswer(
        id=_new_id("rs"), type="reasoning", status="in_progress", summary=[], content=[]
    )


def _new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"
