"""Puts answers on paper: one writer for chats, one for text completions, with the same four verbs.

whole(collected)        the answer of a request that does not stream
head()                  the first chunk of a stream, where there is one
delta(event)            a chunk of text
end(last), usage(last)  the chunks that close it
"""

import time
from dataclasses import dataclass, field
from typing import Protocol

from lookm.types import TokenEvent, TokenLogprob
from server.openai.answers import (
    Answer,
    AssistantAnswer,
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
from server.openai.logprobs import chat_logprobs, text_logprobs


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
    """A whole answer: its text, what was told of its tokens, and its terminal event."""

    text: str
    logprobs: tuple[TokenLogprob, ...]
    last: TokenEvent


class Writer(Protocol):
    """See the module."""

    def whole(self, collected: Collected) -> Answer: ...
    def head(self) -> Answer | None: ...
    def delta(self, event: TokenEvent) -> Answer: ...
    def end(self, last: TokenEvent) -> Answer: ...
    def usage(self, last: TokenEvent) -> Answer | None: ...


@dataclass(frozen=True, slots=True)
class ChatWriter:
    """`chat.completion` and `chat.completion.chunk`."""

    paper: Letterhead

    def whole(self, collected: Collected) -> ChatCompletion:
        choice = Choice(
            index=0,
            message=AssistantAnswer(role="assistant", content=collected.text, refusal=None),
            logprobs=chat_logprobs(collected.logprobs) if self.paper.logprobs else None,
            finish_reason=finish_of(collected.last),
        )
        return ChatCompletion(
            id=self.paper.id,
            object="chat.completion",
            created=self.paper.created,
            model=self.paper.model,
            system_fingerprint=self.paper.fingerprint,
            choices=[choice],
            usage=usage_of(collected.last),
        )

    def head(self) -> ChatChunk:
        return self._chunk([_chunk_choice(Delta(role="assistant", content=""))])

    def delta(self, event: TokenEvent) -> ChatChunk:
        choice = _chunk_choice(Delta(content=event.text))
        if event.logprobs is not None:
            choice.logprobs = chat_logprobs([event.logprobs])
        return self._chunk([choice])

    def end(self, last: TokenEvent) -> ChatChunk:
        return self._chunk([_chunk_choice(Delta(), finish_of(last))])

    def usage(self, last: TokenEvent) -> ChatChunk | None:
        if not self.paper.include_usage:
            return None
        return self._chunk([]).model_copy(update={"usage": usage_of(last)})

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
    """`text_completion`, whole and in chunks; it counts the characters that tokens told of."""

    paper: Letterhead
    offset: int = 0

    def whole(self, collected: Collected) -> TextCompletion:
        choice = _text_choice(collected.text, finish_of(collected.last))
        if self.paper.logprobs:
            choice.logprobs = text_logprobs(collected.logprobs)
        whole = self._chunk([choice])
        return whole.model_copy(update={"usage": usage_of(collected.last)})

    def head(self) -> None:
        return None

    def delta(self, event: TokenEvent) -> TextCompletion:
        choice = _text_choice(event.text)
        if event.logprobs is not None:
            choice.logprobs = text_logprobs([event.logprobs], self.offset)
            self.offset += len(event.logprobs.token)
        return self._chunk([choice])

    def end(self, last: TokenEvent) -> TextCompletion:
        return self._chunk([_text_choice("", finish_of(last))])

    def usage(self, last: TokenEvent) -> TextCompletion | None:
        if not self.paper.include_usage:
            return None
        return self._chunk([]).model_copy(update={"usage": usage_of(last)})

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


def finish_of(last: TokenEvent) -> Finish:
    """OpenAI's word for how an answer ended. Aborts and errors never get this far."""
    assert last.finish in ("stop", "length"), last.finish
    return last.finish


def _chunk_choice(delta: Delta, finish: Finish | None = None) -> ChunkChoice:
    return ChunkChoice(index=0, delta=delta, logprobs=None, finish_reason=finish)


def _text_choice(text: str, finish: Finish | None = None) -> TextChoice:
    return TextChoice(index=0, text=text, logprobs=None, finish_reason=finish)
