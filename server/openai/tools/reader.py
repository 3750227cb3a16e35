"""Generated text into content and tool calls, however the text is cut into pieces.

    TEXT  --marker-->  HEAD  --{ or [-->  JSON  --its end-->  CLOSING  --closing marker-->  TEXT

A call is told when it is complete: what turns out not to be one is content, character for
character, and is not looked at again (so reading takes time in proportion to the text). White space
around calls belongs to no one and is dropped.
"""

from collections.abc import Collection, Iterable, Iterator
from typing import Literal

from server.openai.tools.formats import Call, CallFormat, MalformedCallError

Found = str | Call
State = Literal["text", "head", "json", "closing"]


class CallReader:
    """One answer. Calls of tools that are not among `names` are content."""

    def __init__(self, form: CallFormat, names: Collection[str]) -> None:
        self.num_calls = 0
        self._form = form
        self._names = names
        self._state: State = "text"
        self._held = ""  # text that is not told yet: white space, or the beginning of a marker
        self._has_text = False
        self._head = ""
        self._json: list[str] = []
        self._extent = _JsonExtent()
        self._closing = ""

    def push(self, text: str) -> list[Found]:
        """More text; what is certain now, in order."""
        return list(_joined(each for character in text for each in self._step(character)))

    def finish(self) -> list[Found]:
        """The text is over; all that is left."""
        found = list(self._end_block() if self._state == "closing" else self._no_call())
        if self.num_calls:
            found = [each.rstrip() if isinstance(each, str) else each for each in found]
        return list(_joined(found))

    def _step(self, character: str) -> Iterator[Found]:
        match self._state:
            case "text":
                yield from self._take_text(character)
            case "head":
                yield from self._take_head(character)
            case "json":
                self._json.append(character)
                if self._extent.ends_with(character):
                    self._state = "closing"
                    if not self._form.closing:
                        yield from self._end_block()
            case "closing":
                yield from self._take_closing(character)

    def _take_text(self, character: str) -> Iterator[Found]:
        if self.num_calls and not self._has_text and character.isspace():
            return
        self._held += character
        if character.isspace():
            return  # told together with what follows
        marker = self._form.marker
        found = self._held.endswith(marker)
        num_sure = len(self._held) - (len(marker) if found else _overlap(self._held, marker))
        told = self._held[:num_sure].rstrip()
        self._held = self._held[len(told) :]
        if found:
            self._state, self._held = "head", self._held[: -len(marker)]
        if told:
            self._has_text = True
            yield told

    def _take_head(self, character: str) -> Iterator[Found]:
        if character == self._form.json_opener:
            self._state = "json"
            yield from self._step(character)
        elif self._form.head_may_go_on(self._head + character):
            self._head += character
        else:
            yield from self._no_call()
            yield from self._step(character)

    def _take_closing(self, character: str) -> Iterator[Found]:
        closing = (self._closing + character).lstrip()
        if closing and not self._form.closing.startswith(closing):
            yield from self._no_call()
            yield from self._step(character)
            return
        self._closing += character
        if closing == self._form.closing:
            yield from self._end_block()

    def _end_block(self) -> Iterator[Found]:
        """The block is complete: its calls, or its text."""
        try:
            calls = list(self._form.calls(self._head, "".join(self._json)))
        except MalformedCallError:
            calls = []
        if not calls or any(call.name not in self._names for call in calls):
            yield from self._no_call()
            return
        self._reset()
        self.num_calls += len(calls)
        yield from calls

    def _no_call(self) -> Iterator[Found]:
        """What was held is content."""
        marker = "" if self._state == "text" else self._form.marker
        told = self._held + marker + self._head + "".join(self._json) + self._closing
        self._reset()
        self._has_text = self._has_text or bool(told)
        yield told

    def _reset(self) -> None:
        self._state, self._held, self._head, self._closing = "text", "", "", ""
        self._json, self._extent = [], _JsonExtent()


class _JsonExtent:
    """Finds where a JSON object or array ends: by its brackets, strings left aside."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def ends_with(self, character: str) -> bool:
        """Take the next character; whether it is the last one."""
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                self._in_string = False
            return False
        if character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
        return self._depth == 0


def _overlap(text: str, marker: str) -> int:
    """Length of the longest ending of `text` that is a proper beginning of `marker`."""
    sizes = range(min(len(marker) - 1, len(text)), 0, -1)
    return next((size for size in sizes if text.endswith(marker[:size])), 0)


def _joined(found: Iterable[Found]) -> Iterator[Found]:
    """Neighbouring texts as one, without empty ones."""
    text = ""
    for each in found:
        if isinstance(each, str):
            text += each
            continue
        if text:
            yield text
        text = ""
        yield each
    if text:
        yield text
