"""What a model thinks before it answers, told apart from the answer: `reasoning_content`.

    BEFORE --opening tag--> THINKING --closing tag--> AFTER --text--> ANSWER
       +----- other text: of a model whose prompt ends with the opening tag, it is thinking; of
              others the answer

Whether and how a model thinks is found once, in its chat template. Tags are found however the text
is cut; white space around them belongs to no one. Knows text; nothing about how it is sent.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from lookm.errors import LookmError
from lookm.stop_strings import overlap
from server.openai.protocols import ChatProcessor
from server.openai.schemas.requests import ChatRequest, TextFormat
from server.openai.schemas.tools import AllowedChoice, NamedChoice

TAGS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
QUESTION = {"role": "user", "content": [{"type": "text", "text": "Will it rain?"}]}

State = Literal["before", "thinking", "after", "answer"]
Split = tuple[str, str]  # of what is thought, and of the answer


@dataclass(frozen=True, slots=True)
class Thinking:
    """The tags of a model; `begun`: its prompts end with the opening one."""

    opening: str
    closing: str
    begun: bool = False


def thinking(processor: ChatProcessor) -> Thinking | None:
    """How the model thinks; None where its chat template has no thinking part."""
    for opening, closing in TAGS:
        if closing in processor.template:
            try:
                prompt = processor.rendered([QUESTION])
            except LookmError:
                prompt = ""
            return Thinking(opening, closing, begun=prompt.rstrip().endswith(opening))
    return None


def thinking_reader(body: ChatRequest, model: Thinking | None) -> "ThinkingReader | None":
    """A reader for one answer; None where there is no thinking in it.

    An answer whose form is enforced has that form from its first token on.
    """
    form, choice = body.response_format, body.tool_choice
    mode = choice.allowed_tools.mode if isinstance(choice, AllowedChoice) else choice
    forced = isinstance(choice, NamedChoice) or mode == "required"
    if model is None or forced or (form is not None and not isinstance(form, TextFormat)):
        return None
    return ThinkingReader(model)


class ThinkingReader:
    """One answer."""

    def __init__(self, model: Thinking) -> None:
        self._model = model
        self._state: State = "before"
        self._at_start = True  # of what is thought
        self._held = ""  # text that is not sure yet: white space, or the beginning of a tag

    def push(self, text: str) -> Split:
        """More text; what is certain now."""
        self._held += text
        thought = answer = ""
        if self._state == "before":
            self._begin()
        if self._state == "thinking":
            thought = self._think()
        if self._state == "after":
            self._held = self._held.lstrip()
            self._state = "answer" if self._held else "after"
        if self._state == "answer":
            answer, self._held = self._held, ""
        return thought, answer

    def finish(self) -> Split:
        """The text is over; all that is left."""
        held, self._held = self._held, ""
        if self._state == "thinking" or (self._state == "before" and self._model.begun):
            return (held.strip() if self._at_start else held.rstrip()), ""
        return "", held

    def _begin(self) -> None:
        model, text = self._model, self._held.lstrip()
        if text.startswith(model.opening):
            self._state, self._held = "thinking", text[len(model.opening) :].lstrip()
        elif not model.opening.startswith(text):
            self._state = "thinking" if model.begun else "answer"
            self._held = text if model.begun else self._held

    def _think(self) -> str:
        if self._at_start:
            self._held = self._held.lstrip()
        closing = self._model.closing
        at = self._held.find(closing)
        if at >= 0:
            self._state = "after"
            thought, self._held = self._held[:at].rstrip(), self._held[at + len(closing) :]
            return thought
        thought = self._held[: len(self._held) - overlap(self._held, closing)].rstrip()
        self._held = self._held[len(thought) :]
        self._at_start = self._at_start and not thought
        return thought


def split(pieces: Iterable[str], reader: ThinkingReader) -> Split:
    """A whole answer."""
    found = [*(reader.push(piece) for piece in pieces), reader.finish()]
    return "".join(thought for thought, _ in found), "".join(answer for _, answer in found)
