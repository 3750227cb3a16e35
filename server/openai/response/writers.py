"""Puts answers on paper: one writer for chats, one for text completions, with the same five verbs.

whole(collected)     the answer of a request that does not stream, with all its choices
head(choice)         the first chunk of a choice, where there is one
told(choice, event)  the chunks of what it adds
end(choice, last)    the chunk that closes it
usage(ends)          the chunk that closes the stream, where it was asked for
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lookm.types import TokenEvent, TokenLogprob
from server.openai.response.logprobs import chat_logprobs, text_logprobs
from server.openai.response.schemas import (
    Answer,
    ChatChunk,
    ChatCompletion,
    Choice,
    ChunkChoice,
    Delta,
    Finish,
    TextChoice,
    TextCompletion,
    usage_of,
)
from server.openai.response.tool_calls import deltas_of, message_of
from server.openai.tools.reader import CallReader


@dataclass(frozen=True, slots=True)
class Letterhead:
    """What every answer and chunk repeats."""

    id: str
    model: str
    fingerprint: str
    include_usage: bool = False
    logprobs: bool = False
    created: int = field(default_factory=lambda: int(time.time()))


@dataclass(frozen=True, slots=True)
class Collected:
    """One whole choice: its text, what was told of its tokens, and its terminal event."""

    text: str
    logprobs: tuple[TokenLogprob, ...]
    last: TokenEvent


class Writer(Protocol):
    """See the module."""

    def whole(self, collected: Sequence[Collected]) -> Answer: ...
    def head(self, choice: int) -> Answer | None: ...
    def told(self, choice: int, event: TokenEvent) -> Iterator[Answer]: ...
    def end(self, choice: int, last: TokenEvent) -> Answer: ...
    def usage(self, ends: Sequence[TokenEvent]) -> Answer | None: ...


@dataclass(frozen=True, slots=True)
class ChatWriter:
    """`chat.completion` and `chat.completion.chunk`; with `new_reader`, tool calls are read out."""

    paper: Letterhead
    new_reader: Callable[[], CallReader | None] = lambda: None
    readers: dict[int, CallReader | None] = field(default_factory=dict)

    def whole(self, collected: Sequence[Collected]) -> ChatCompletion:
        return ChatCompletion(
            id=self.paper.id,
            object="chat.completion",
            created=self.paper.created,
            model=self.paper.model,
            system_fingerprint=self.paper.fingerprint,
            choices=[self._choice(index, each) for index, each in enumerate(collected)],
            usage=usage_of([each.last for each in collected]),
        )

    def head(self, choice: int) -> ChatChunk:
        self.readers[choice] = self.new_reader()
        return self._chunk([_chunk_choice(choice, Delta(role="assistant", content=""))])

    def told(self, choice: int, event: TokenEvent) -> Iterator[ChatChunk]:
        deltas = deltas_of(event, self.readers[choice])
        if event.logprobs is not None:
            written = _chunk_choice(choice, next(deltas, Delta(content="")))
            written.logprobs = chat_logprobs([event.logprobs])
            yield self._chunk([written])
        for delta in deltas:
            yield self._chunk([_chunk_choice(choice, delta)])

    def end(self, choice: int, last: TokenEvent) -> ChatChunk:
        reader = self.readers[choice]
        called = reader is not None and reader.num_calls > 0
        return self._chunk([_chunk_choice(choice, Delta(), finish_of(last, called=called))])

    def usage(self, ends: Sequence[TokenEvent]) -> ChatChunk | None:
        if not self.paper.include_usage:
            return None
        return self._chunk([]).model_copy(update={"usage": usage_of(ends)})

    def _choice(self, index: int, collected: Collected) -> Choice:
        message = message_of(collected.text, self.new_reader())
        called = message.tool_calls is not None
        return Choice(
            index=index,
            message=message,
            logprobs=chat_logprobs(collected.logprobs) if self.paper.logprobs else None,
            finish_reason=finish_of(collected.last, called=called),
        )

    def _chunk(self, choices: list[ChunkChoice]) -> ChatChunk:
        chunk = ChatChunk(
            id=self.paper.id,
            object="chat.completion.chunk",
            created=self.paper.created,
            model=self.paper.model,
            system_fingerprint=self.paper.fingerprint,
            choices=choices,
        )
        if self.paper.include_usage:
            chunk.usage = None  # set, and so sent: OpenAI sends null until the last chunk
        return chunk


@dataclass(slots=True)
class TextWriter:
    """`text_completion`, whole and in chunks; it counts the characters of each choice's tokens."""

    paper: Letterhead
    offsets: dict[int, int] = field(default_factory=dict)

    def whole(self, collected: Sequence[Collected]) -> TextCompletion:
        whole = self._chunk([self._choice(index, each) for index, each in enumerate(collected)])
        return whole.model_copy(update={"usage": usage_of([each.last for each in collected])})

    def head(self, choice: int) -> None:
        del choice

    def told(self, choice: int, event: TokenEvent) -> Iterator[TextCompletion]:
        if not event.text and event.logprobs is None:
            return
        written = _text_choice(choice, event.text)
        if event.logprobs is not None:
            offset = self.offsets.get(choice, 0)
            written.logprobs = text_logprobs([event.logprobs], offset)
            self.offsets[choice] = offset + len(event.logprobs.token)
        yield self._chunk([written])

    def end(self, choice: int, last: TokenEvent) -> TextCompletion:
        return self._chunk([_text_choice(choice, "", finish_of(last))])

    def usage(self, ends: Sequence[TokenEvent]) -> TextCompletion | None:
        if not self.paper.include_usage:
            return None
        return self._chunk([]).model_copy(update={"usage": usage_of(ends)})

    def _choice(self, index: int, collected: Collected) -> TextChoice:
        choice = _text_choice(index, collected.text, finish_of(collected.last))
        if self.paper.logprobs:
            choice.logprobs = text_logprobs(collected.logprobs)
        return choice

    def _chunk(self, choices: list[TextChoice]) -> TextCompletion:
        chunk = TextCompletion(
            id=self.paper.id,
            object="text_completion",
            created=self.paper.created,
            model=self.paper.model,
            system_fingerprint=self.paper.fingerprint,
            choices=choices,
        )
        if self.paper.include_usage:
            chunk.usage = None
        return chunk


def finish_of(last: TokenEvent, *, called: bool = False) -> Finish:
    """OpenAI's word for how an answer ended. Aborts and errors never get this far."""
    assert last.finish in ("stop", "length"), last.finish
    return "tool_calls" if called and last.finish == "stop" else last.finish


def _chunk_choice(index: int, delta: Delta, finish: Finish | None = None) -> ChunkChoice:
    return ChunkChoice(index=index, delta=delta, logprobs=None, finish_reason=finish)


def _text_choice(index: int, text: str, finish: Finish | None = None) -> TextChoice:
    return TextChoice(index=index, text=text, logprobs=None, finish_reason=finish)
