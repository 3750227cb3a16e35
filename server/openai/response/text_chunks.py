"""A text completion in OpenAI's shape: one `text_completion`, whole or for each event.

Knows shapes; nothing about how they are framed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from server.openai.response.choices import ChoiceEvent
from server.openai.response.logprobs import text_logprobs
from server.openai.response.writers import AnswerHeader, Collected, usage_of_all
from server.openai.schemas.answers import Finish, TextChoice, TextCompletion, finish_of


@dataclass(frozen=True, slots=True)
class TextChunks:
    """The `writers.Chunks` of a text completion; counts the characters of each choice's tokens."""

    header: AnswerHeader
    offsets: dict[int, int] = field(default_factory=dict)

    def whole(self, collected: Sequence[Collected]) -> TextCompletion:
        whole = self._chunk([self._choice(index, each) for index, each in enumerate(collected)])
        whole.usage = usage_of_all(collected)
        return whole

    def first(self, choice: int) -> Iterator[TextCompletion]:
        del choice
        return iter(())

    def of(self, item: ChoiceEvent) -> Iterator[TextCompletion]:
        event = item.event
        if event.text or event.logprobs is not None:
            choice = _choice(item.choice, event.text)
            if event.logprobs is not None:
                offset = self.offsets.get(item.choice, 0)
                choice.logprobs = text_logprobs([event.logprobs], offset)
                self.offsets[item.choice] = offset + len(event.logprobs.token)
            yield self._chunk([choice])
        if event.finish is not None:
            yield self._chunk([_choice(item.choice, "", finish_of(event))])

    def without_choices(self) -> TextCompletion:
        return self._chunk([])

    def _choice(self, index: int, collected: Collected) -> TextChoice:
        choice = _choice(index, collected.text, finish_of(collected.last))
        if self.header.logprobs:
            choice.logprobs = text_logprobs(collected.logprobs)
        return choice

    def _chunk(self, choices: list[TextChoice]) -> TextCompletion:
        return TextCompletion(object="text_completion", choices=choices, **self.header.fields())


def _choice(index: int, text: str, finish: Finish | None = None) -> TextChoice:
    return TextChoice(index=index, text=text, logprobs=None, finish_reason=finish)
