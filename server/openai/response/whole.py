"""A whole answer as JSON, without holding everyone up.

Sixteen choices of 1,900 tokens with 20 log-probabilities each are 600,000 objects and 50 MB. They
are made in a thread, and written in parts: the serializer does not release the interpreter's lock.
Nor are the parts ever one: each is sent when the client has taken what came before it.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from pydantic import TypeAdapter
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lookm.types import TokenLogprob
from server.openai.response.logprobs import chat_logprobs
from server.openai.response.writers import Collected, Writer
from server.openai.schemas.answers import ChatCompletion, Choice, TextCompletion
from server.openai.schemas.logprobs import Entry
from server.openai.schemas.response_answers import ResponseAnswer

LARGE_ENTRIES = 1000  # log-probabilities: about 10 ms
TOKENS_AT_ONCE = 32

_ENTRIES = TypeAdapter(list[Entry])
NO_CHOICES = b'"choices":[]'
NO_ENTRIES = b'"content":[]'


async def whole_json(writer: Writer, collected: Sequence[Collected]) -> list[bytes]:
    """The answer's bytes, in parts."""
    num_entries = sum(len(one.logprobs) * _num_each(one.logprobs) for one in collected)
    if num_entries < LARGE_ENTRIES:
        return [writer.whole(collected).to_json().encode()]
    return await asyncio.to_thread(lambda: list(parts(writer, collected)))


class WholeAnswer(Response):
    """Sends the parts of an answer, as fast as its client reads."""

    media_type = "application/json"

    def __init__(self, written: Sequence[bytes], headers: Mapping[str, str]) -> None:
        super().__init__(headers={**headers, "content-length": str(sum(map(len, written)))})
        self.written = written

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        for part in self.written:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def parts(writer: Writer, collected: Sequence[Collected]) -> Iterator[bytes]:
    """The same bytes as `writer.whole(collected).to_json()`, each part made in milliseconds.

    A chat's log-probabilities are never all objects at once: the garbage collector would look
    through them all, and everybody would wait. What is left empty is found by its name: a quote
    in a text is escaped, so no text has it.
    """
    answer = writer.whole([replace(one, logprobs=()) for one in collected])
    if not isinstance(answer, ChatCompletion):
        answer = writer.whole(collected)
    if isinstance(answer, ResponseAnswer):  # of one choice
        yield answer.to_json().encode()
        return
    assert isinstance(answer, ChatCompletion | TextCompletion)
    hull = answer.model_copy(update={"choices": []}).to_json().encode()
    before, after = hull.split(NO_CHOICES)
    yield before + NO_CHOICES[:-1]
    for n, (choice, one) in enumerate(zip(answer.choices, collected, strict=True)):
        yield b"," if n else b""
        written = choice.to_json().encode()
        if isinstance(choice, Choice) and choice.logprobs is not None:
            before_entries, after_entries = written.split(NO_ENTRIES)
            yield before_entries + NO_ENTRIES[:-1]
            yield from _entries(one.logprobs)
            yield b"]" + after_entries
        else:
            yield written
    yield b"]" + after


def _num_each(tokens: Sequence[TokenLogprob]) -> int:
    """Entries of a token; all have as many."""
    return 1 + len(tokens[0].top) if tokens else 0


def _entries(tokens: Sequence[TokenLogprob]) -> Iterator[bytes]:
    for start in range(0, len(tokens), TOKENS_AT_ONCE):
        entries = chat_logprobs(tokens[start : start + TOKENS_AT_ONCE]).content
        yield (b"," if start else b"") + _ENTRIES.dump_json(entries)[1:-1]
