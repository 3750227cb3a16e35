"""Writes answers, whole or as the bytes of a stream, framed as an endpoint's clients read them.

`stream` calls a writer's verbs and sends what they return:

    whole(collected)    the answer of a request that does not stream, with all its choices
    begin(num_choices)  the stream's first bytes
    add(item)           what an event of a choice adds; nothing where its text is held back
    end()               the last bytes of a stream that was answered
    fail(error)         the last bytes of one that failed: its status was sent long ago

`CompletionWriter` frames both of OpenAI's completions; `chat_chunks` and `text_chunks` make what it
frames. An endpoint with another framing (named events, no `[DONE]`) is another `Writer`.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypedDict

from lookm.types import TokenEvent, TokenLogprob
from server.api_errors import ApiError
from server.openai.response.choices import ChoiceEvent
from server.openai.response.packed import PackedLogprobs
from server.openai.schemas.answers import ChatChunk, TextCompletion
from server.openai.schemas.usage import Answer, KeptPositionsUsage, TimingsUsage, Usage, usage_of

Chunk = ChatChunk | TextCompletion


@dataclass(frozen=True, slots=True)
class AnswerHeader:
    """What every answer and chunk repeats, and what the request wants to read in them."""

    id: str
    model: str
    fingerprint: str
    include_usage: bool = False
    logprobs: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    def fields(self) -> "HeaderFields":
        """The fields under their names in OpenAI's shapes."""
        return {
            "id": self.id,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


class HeaderFields(TypedDict):
    """What `ChatCompletion`, `ChatChunk` and `TextCompletion` all begin with."""

    id: str
    created: int
    model: str
    system_fingerprint: str


@dataclass(frozen=True, slots=True)
class Collected:
    """One whole choice: its text (`texts`: as it came), the log-probabilities of its tokens, its
    terminal event and what comes with that."""

    text: str
    logprobs: Sequence[TokenLogprob]
    last: TokenEvent
    positions: KeptPositionsUsage | None = None
    timings: TimingsUsage | None = None
    tokens_per_image: tuple[int, ...] = ()
    texts: Sequence[str] = ()


def usage_of_all(collected: Sequence[Collected]) -> Usage:
    """What all choices took together."""
    positions = next((each.positions for each in collected if each.positions is not None), None)
    timings = [each.timings for each in collected if each.timings is not None]
    longest = max(timings, key=lambda each: each.total, default=None)
    per_image = collected[0].tokens_per_image
    return usage_of([each.last for each in collected], positions, longest, per_image)


@dataclass(slots=True)
class Collecting:
    """A choice that becomes whole, event by event."""

    texts: list[str] = field(default_factory=list)
    logprobs: PackedLogprobs = field(default_factory=PackedLogprobs)
    last: ChoiceEvent | None = None

    def add(self, item: ChoiceEvent) -> None:
        """The next event; the terminal one is the last."""
        self.texts.append(item.event.text)
        if item.event.logprobs is not None:
            self.logprobs.add(item.event.logprobs)
        self.last = item

    def collected(self) -> Collected:
        """The whole choice."""
        last = self.last
        assert last is not None, "every accepted request has a terminal event"
        text = "".join(self.texts)
        more = last.positions, last.timings, last.tokens_per_image, self.texts
        return Collected(text, self.logprobs, last.event, *more)


class Writer(Protocol):
    """Writes one request's answer; see the module."""

    def whole(self, collected: Sequence[Collected]) -> Answer: ...
    def begin(self, num_choices: int) -> bytes: ...
    def add(self, item: ChoiceEvent) -> bytes: ...
    def end(self) -> bytes: ...
    def fail(self, error: ApiError) -> bytes: ...


class Chunks(Protocol):
    """What the chunks of one endpoint hold, whatever their framing."""

    @property
    def header(self) -> AnswerHeader: ...
    def whole(self, collected: Sequence[Collected]) -> Answer: ...
    def first(self, choice: int) -> Iterator[Chunk]: ...
    def of(self, item: ChoiceEvent) -> Iterator[Chunk]: ...
    def without_choices(self) -> Chunk: ...


@dataclass(slots=True)
class CompletionWriter:
    """OpenAI's framing of completions: `data:` lines, the usage where wanted, then `[DONE]`."""

    chunks: Chunks
    ends: list[TokenEvent] = field(default_factory=list)
    positions: KeptPositionsUsage | None = None
    timings: TimingsUsage | None = None
    tokens_per_image: tuple[int, ...] = ()

    def whole(self, collected: Sequence[Collected]) -> Answer:
        return self.chunks.whole(collected)

    def begin(self, num_choices: int) -> bytes:
        return self._frames(each for n in range(num_choices) for each in self.chunks.first(n))

    def add(self, item: ChoiceEvent) -> bytes:
        if item.event.finish is not None:
            self.ends.append(item.event)
            self.positions = item.positions or self.positions
            self.timings = item.timings
            self.tokens_per_image = item.tokens_per_image
        return self._frames(self.chunks.of(item))

    def end(self) -> bytes:
        if not self.chunks.header.include_usage:
            return DONE
        usage = usage_of(self.ends, self.positions, self.timings, self.tokens_per_image)
        return self._frame(self.chunks.without_choices(), usage) + DONE

    def fail(self, error: ApiError) -> bytes:
        return b"event: error\n" + _data(json.dumps(error.envelope())) + DONE

    def _frames(self, chunks: Iterator[Chunk]) -> bytes:
        return b"".join(map(self._frame, chunks))

    def _frame(self, chunk: Chunk, usage: Usage | None = None) -> bytes:
        if self.chunks.header.include_usage:
            chunk.usage = usage  # set, and so sent: OpenAI sends null until the last chunk
        return _data(chunk.to_json())


def _data(line: str) -> bytes:
    return f"data: {line}\n\n".encode()


DONE = _data("[DONE]")
