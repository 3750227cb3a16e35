"""Answers that call tools, in OpenAI's two shapes: a whole message, and the deltas of a stream.

Knows the shapes; `tools.reader` finds the calls.
"""

import uuid
from collections.abc import Iterator

from lookm.types import TokenEvent
from server.openai.schemas.answers import AnswerCall, AnswerFunction, AssistantAnswer, Delta
from server.openai.tools.formats import Call
from server.openai.tools.reader import Begun, CallReader, with_calls


def message_of(text: str, reader: CallReader | None) -> AssistantAnswer:
    """A whole answer. `content` is null where there is nothing beside the calls."""
    if reader is None:
        return AssistantAnswer(role="assistant", content=text, refusal=None)
    found = with_calls([*reader.push(text), *reader.finish()])
    calls = [each for each in found if isinstance(each, Call)]
    content = "".join(each for each in found if isinstance(each, str))
    if not calls:
        return AssistantAnswer(role="assistant", content=content, refusal=None)
    written = [
        AnswerCall(
            id=_new_id(),
            type="function",
            function=AnswerFunction(name=call.name, arguments=call.arguments),
        )
        for call in calls
    ]
    return AssistantAnswer(
        role="assistant", content=content or None, refusal=None, tool_calls=written
    )


def deltas_of(event: TokenEvent, reader: CallReader | None) -> Iterator[Delta]:
    """What one event adds: text once it is certain, a call's name, its arguments as they come."""
    if reader is None:
        if event.text:
            yield Delta(content=event.text)
        return
    index = reader.num_calls - 1  # of the call that is being written
    found = reader.push(event.text)
    if event.finish is not None:
        found += reader.finish()
    for each in found:
        if isinstance(each, str):
            yield Delta(content=each)
        elif isinstance(each, Begun):
            index += 1
            named = AnswerFunction(name=each.name, arguments="")
            call = AnswerCall(index=index, id=_new_id(), type="function", function=named)
            yield Delta(tool_calls=[call])
        else:
            written = AnswerFunction(arguments=each.text)
            yield Delta(tool_calls=[AnswerCall(index=index, function=written)])


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"
