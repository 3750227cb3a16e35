"""Generated text into content and tool calls, however the text is cut into pieces.

    TEXT --marker--> HEAD --[--> LIST --{--> OBJECT --"arguments": {--> ARGUMENTS --}--> REST --+
     ^                 |          ^            ^                                                |
     |                 +--- { ----|------------+                                                |
     |                            +--------------- another object of the list ------------------+
     +----- closing marker ----- CLOSING <------------------- the last bracket -----------------+

A call begins, for the client, once the name of a known tool and the bracket that opens its
arguments have come; from there on its arguments are sent as they are written. What turns out before
that to be no call is content, character for character, and is not looked at again (so reading takes
time in proportion to the text). A call that has begun stays one: its arguments are the model's own
text, which may be cut short or be no JSON, and only what does not belong to its form is content
again. White space around calls belongs to no one and is dropped.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from lookm.stop_strings import overlap
from server.openai.tools.formats import Call, CallFormat

MAX_BEFORE_ARGUMENTS = 512  # characters of a call's JSON; behind more, arguments are sent whole

State = Literal["text", "head", "list", "object", "arguments", "rest", "closing"]


@dataclass(frozen=True, slots=True)
class Begun:
    """A call of this tool begins."""

    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of the arguments of the call that began last."""

    text: str


Found = str | Begun | Arguments


class CallReader:
    """One answer. Calls of tools that are not among `names` are content."""

    def __init__(self, form: CallFormat, names: Collection[str]) -> None:
        self.num_calls = 0
        self._form = form
        self._names = names
        self._has_text = False
        self._reset()

    def _reset(self) -> None:
        """Outside of calls, nothing held back."""
        self._state: State = "text"
        self._held = ""  # text that is not sure yet: white space, the beginning of a marker
        self._space: list[str] = []  # white space behind it: goes together with what follows
        self._block: list[str] = []  # not sure yet: from the marker, or from the last call's end
        self._has_call = False  # whether a call of this block has begun
        self._head = ""
        self._beside = ""  # what came beside objects and arguments, without white space
        self._object: list[str] = []
        self._object_extent = _JsonExtent()
        self._arguments_extent = _JsonExtent()

    def push(self, text: str) -> list[Found]:
        """More text; what is certain now, in order."""
        return list(_joined(each for character in text for each in self._step(character)))

    def finish(self) -> list[Found]:
        """The text is over; all that is left."""
        found = [] if self._has_call and self._state != "object" else list(self._no_call())
        if self.num_calls:
            found = [each.rstrip() if isinstance(each, str) else each for each in found]
        return list(_joined(found))

    def _step(self, character: str) -> Iterator[Found]:
        match self._state:
            case "text":
                yield from self._take_text(character)
            case "head":
                yield from self._take_head(character)
            case "list":
                yield from self._take_between(character)
            case "object":
                yield from self._take_object(character)
            case "arguments":
                yield Arguments(character)
                if self._arguments_extent.ends_with(character):
                    self._end_arguments()
            case "rest":
                yield from self._take_rest(character)
            case "closing":
                yield from self._take_closing(character)

    def _take_text(self, character: str) -> Iterator[Found]:
        if self.num_calls and not self._has_text and character.isspace():
            return
        at_start = not (self.num_calls or self._has_text or self._held.strip())
        if self._form.bare and at_start and character == self._form.json_opener:
            yield from self._take_head(character)
            return
        if character.isspace():
            self._space.append(character)
            return
        self._held += "".join(self._space) + character
        self._space.clear()
        marker = self._form.marker
        found = self._held.endswith(marker)
        num_sure = len(self._held) - (len(marker) if found else overlap(self._held, marker))
        text = self._held[:num_sure].rstrip()
        self._held = self._held[len(text) :]
        if found:
            self._held, self._block = self._held[: -len(marker)], [marker]
            self._state = "head"
        if text:
            self._has_text = True
            yield text

    def _take_head(self, character: str) -> Iterator[Found]:
        form = self._form
        if character == form.json_opener:
            if form.named_before:
                yield from self._begin(form.name_in_head(self._head))
            else:
                self._state = "list" if character == "[" else "object"
        elif form.head_may_go_on(self._head + character):
            self._head += character
            self._block.append(character)
            return
        else:
            yield from self._no_call()
        yield from self._step(character)

    def _take_between(self, character: str) -> Iterator[Found]:
        """`[`, then `,` or `]`, around the objects of a list."""
        if character == "{" and self._beside == ("," if self._has_call else "["):
            self._state, self._beside = "object", ""
            yield from self._step(character)
            return
        self._block.append(character)
        if character.isspace():
            return
        self._beside += character
        if self._has_call and self._beside in ("]", ",]"):
            self._end_block()
        elif self._beside != ("," if self._has_call else "["):
            yield from self._no_call()

    def _take_object(self, character: str) -> Iterator[Found]:
        begins = character == "{" and self._object_extent.at_top
        if begins and len(self._object) <= MAX_BEFORE_ARGUMENTS:
            name = self._form.name_in_json("".join(self._object))
            if name in self._names:
                yield from self._begin(name)
                yield from self._step(character)
                return
        self._block.append(character)
        self._object.append(character)
        if self._object_extent.ends_with(character):
            yield from self._take_whole(self._form.call("".join(self._object)))

    def _take_whole(self, call: Call | None) -> Iterator[Found]:
        """An object whose arguments could not be sent while they were written."""
        if call is None or call.name not in self._names:
            yield from self._no_call()
            return
        yield from self._begin(call.name)
        yield Arguments(call.arguments)
        self._end_object()

    def _take_rest(self, character: str) -> Iterator[Found]:
        """What a call's object holds after its arguments; its last bracket may be missing."""
        if character.isspace():
            return
        if not self._beside and character not in ",}":
            self._end_object()
            yield from self._step(character)
            return
        self._beside = character
        if self._object_extent.ends_with(character):
            self._end_object()

    def _take_closing(self, character: str) -> Iterator[Found]:
        closing = (self._beside + character).lstrip()
        if not self._form.closing.startswith(closing):  # it is missing
            again = (*self._block, character)
            self._reset()
            for each in again:
                yield from self._step(each)
            return
        self._block.append(character)
        self._beside = closing
        if closing == self._form.closing:
            self._reset()

    def _begin(self, name: str | None) -> Iterator[Found]:
        """A call of a known tool; any other is content."""
        if name is None or name not in self._names:
            yield from self._no_call()
            return
        self.num_calls += 1
        self._held, self._space, self._block, self._has_call = "", [], [], True
        self._state, self._arguments_extent = "arguments", _JsonExtent()
        yield Begun(name)

    def _end_arguments(self) -> None:
        if self._form.named_before:
            self._end_block()
        else:
            self._state, self._beside = "rest", ""

    def _end_object(self) -> None:
        if self._form.json_opener == "{":
            self._end_block()
        else:
            self._state, self._beside = "list", ""
            self._object, self._object_extent = [], _JsonExtent()

    def _end_block(self) -> None:
        if self._form.closing:
            self._state, self._beside = "closing", ""
        else:
            self._reset()

    def _no_call(self) -> Iterator[Found]:
        """What was held is content."""
        text = self._held + "".join(self._space + self._block)
        if self.num_calls and not self._has_text:
            text = text.lstrip()
        self._reset()
        self._has_text = self._has_text or bool(text)
        yield text


class _JsonExtent:
    """Finds where a JSON object or array ends: by its brackets, strings left aside."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    @property
    def at_top(self) -> bool:
        """Between the keys and values of the outermost object or array."""
        return self._depth == 1 and not self._in_string

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


def with_calls(found: Iterable[Found]) -> list[str | Call]:
    """The same with each call as a whole."""
    whole: list[str | Call] = []
    for each in found:
        if isinstance(each, Begun):
            whole.append(Call(each.name, ""))
        elif isinstance(each, str):
            whole.append(each)
        else:
            call = whole[-1]
            assert isinstance(call, Call), "arguments follow their call's beginning"
            whole[-1] = Call(call.name, call.arguments + each.text)
    return whole


def _joined(found: Iterable[Found]) -> Iterator[Found]:
    """Neighbouring texts, and neighbouring pieces of arguments, as one; without empty texts."""
    for kind, group in groupby(found, key=type):
        if kind is Begun:
            yield from group
            continue
        text = "".join(each.text if isinstance(each, Arguments) else str(each) for each in group)
        if text:
            yield text if kind is str else Arguments(text)
