"""A chat's answer in OpenAI's shapes: one `chat.completion`, or `chat.completion.chunk`s.

Tool calls are read out of the text where the request may have any. Knows shapes; nothing about how
they are framed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from server.openai.response.choices import ChoiceEvent
from server.openai.response.logprobs import chat_logprobs
from server.openai.response.tool_calls import deltas_of, message_of
from server.openai.response.writers import AnswerHeader, Collected, usage_of_all
from server.openai.schemas.answers import (
    ChatChunk,
    ChatCompletion,
    Choice,
    ChunkChoice,
    Delta,
    Finish,
    finish_of,
)
from server.openai.tools.reader import CallReader


@dataclass(frozen=True, slots=True)
class ChatChunks:
    """The `writers.Chunks` of a chat. `new_reader` gives each choice a reader of tool calls."""

    header: AnswerHeader
    new_reader: Callable[[], CallReader | None] = lambda: None
    readers: dict[int, CallReader | None] = field(default_factory=dict)

    def whole(self, collected: Sequence[Collected]) -> ChatCompletion:
        return ChatCompletion(
            object="chat.completion",
            choices=[self._choice(index, each) for index, each in enumerate(collected)],
            usage=usage_of_all(collected),
            **self.header.fields(),
        )

    def first(self, choice: int) -> Iterator[ChatChunk]:
        self.readers[choice] = self.new_reader()
        yield self._chunk([_choice(choice, Delta(role="assistant", content=""))])

    def of(self, item: ChoiceEvent) -> Iterator[ChatChunk]:
        event, reader = item.event, self.readers[item.choice]
        deltas = deltas_of(event, reader)
        if event.logprobs is not None:
            choice = _choice(item.choice, next(deltas, Delta(content="")))
            choice.logprobs = chat_logprobs([event.logprobs])
            yield self._chunk([choice])
        for delta in deltas:
            yield self._chunk([_choice(item.choice, delta)])
        if event.finish is not None:
            called = reader is not None and reader.num_calls > 0
            yield self._chunk([_choice(item.choice, Delta(), finish_of(event, called=called))])

    def without_choices(self) -> ChatChunk:
        return self._chunk([])

    def _choice(self, index: int, collected: Collected) -> Choice:
        message = message_of(collected.text, self.new_reader())
        called = message.tool_calls is not None
        return Choice(
            index=index,
            message=message,
            logprobs=chat_logprobs(collected.logprobs) if self.header.logprobs else None,
            finish_reason=finish_of(collected.last, called=called),
        )

    def _chunk(self, choices: list[ChunkChoice]) -> ChatChunk:
        fields = self.header.fields()
        return ChatChunk(object="chat.completion.chunk", choices=choices, **fields)


def _choice(index: int, delta: Delta, finish: Finish | None = None) -> ChunkChoice:
    return ChunkChoice(index=index, delta=delta, logprobs=None, finish_reason=finish)
