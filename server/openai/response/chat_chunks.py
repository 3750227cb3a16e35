"""A chat's answer in OpenAI's shapes: one `chat.completion`, or `chat.completion.chunk`s.

What the model thinks, and tool calls, are read out of the text where there may be any. Knows
shapes; nothing about how they are framed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from server.openai.reasoning import ThinkingReader, split
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
    """The `writers.Chunks` of a chat. `new_reader` gives each choice a reader of tool calls, and
    `new_thinker` one of what is thought."""

    header: AnswerHeader
    new_reader: Callable[[], CallReader | None] = lambda: None
    new_thinker: Callable[[], ThinkingReader | None] = lambda: None
    readers: dict[int, CallReader | None] = field(default_factory=dict)
    thinkers: dict[int, ThinkingReader | None] = field(default_factory=dict)

    def whole(self, collected: Sequence[Collected]) -> ChatCompletion:
        return ChatCompletion(
            object="chat.completion",
            choices=[self._choice(index, each) for index, each in enumerate(collected)],
            usage=usage_of_all(collected),
            **self.header.fields(),
        )

    def begin(self, choice: int) -> None:
        """A choice's readers, before its first event."""
        self.readers[choice] = self.new_reader()
        self.thinkers[choice] = self.new_thinker()

    def first(self, choice: int) -> Iterator[ChatChunk]:
        self.begin(choice)
        yield self._chunk([_choice(choice, Delta(role="assistant", content=""))])

    def of(self, item: ChoiceEvent) -> Iterator[ChatChunk]:
        event, reader = item.event, self.readers[item.choice]
        deltas = self.deltas(item)
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

    def deltas(self, item: ChoiceEvent) -> Iterator[Delta]:
        """What an event of a choice adds that has begun."""
        event, thinker = item.event, self.thinkers[item.choice]
        if thinker is not None:
            thought, text = thinker.push(event.text)
            if event.finish is not None:
                left, rest = thinker.finish()
                thought, text = thought + left, text + rest
            if thought:
                yield Delta(reasoning_content=thought)
            event = replace(event, text=text)
        yield from deltas_of(event, self.readers[item.choice])

    def _choice(self, index: int, collected: Collected) -> Choice:
        text, thought, thinker = collected.text, "", self.new_thinker()
        if thinker is not None:
            thought, text = split([text], thinker)
        message = message_of(text, self.new_reader())
        if thought:  # set, and so sent
            message.reasoning_content = thought
            message.content = message.content or None
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
