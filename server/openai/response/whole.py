"""A whole answer as JSON, without holding everyone up.

Sixteen choices of 1,900 tokens with 20 log-probabilities each are 600,000 objects and 50 MB. They
are made in a thread, and written in parts: the serializer does not release the interpreter's lock.
"""

import asyncio
from collections.abc import Iterator, Sequence

from pydantic import TypeAdapter

from server.openai.response.writers import Collected, Writer
from server.openai.schemas.answers import Answer, ChatCompletion, Choice, TextCompletion
from server.openai.schemas.logprobs import Entry

LARGE_ENTRIES = 1000  # log-probabilities: about 10 ms
TOKENS_AT_ONCE = 32

_ENTRIES = TypeAdapter(list[Entry])
NO_CHOICES = b'"choices":[]'
NO_ENTRIES = b'"content":[]'


async def whole_json(writer: Writer, collected: Sequence[Collected]) -> bytes:
    """The answer's bytes."""
    num_entries = sum(1 + len(each.top) for one in collected for each in one.logprobs)
    if num_entries < LARGE_ENTRIES:
        return writer.whole(collected).to_json().encode()
    return await asyncio.to_thread(lambda: b"".join(parts(writer.whole(collected))))


def parts(answer: Answer) -> Iterator[bytes]:
    """The same bytes as `answer.to_json()`, each part made in about a millisecond.

    What is left empty is found by its name: a quote in a text is escaped, so no text has it.
    """
    if not isinstance(answer, ChatCompletion | TextCompletion):
        yield answer.to_json().encode()
        return
    hull = answer.model_copy(update={"choices": []}).to_json().encode()
    before, after = hull.split(NO_CHOICES)
    yield before + NO_CHOICES[:-1]
    for n, choice in enumerate(answer.choices):
        yield b"," if n else b""
        if isinstance(choice, Choice) and choice.logprobs is not None:
            yield from _with_entries(choice, choice.logprobs.content or [])
        else:
            yield choice.to_json().encode()
    yield b"]" + after


def _with_entries(choice: Choice, entries: Sequence[Entry]) -> Iterator[bytes]:
    assert choice.logprobs is not None
    logprobs = choice.logprobs.model_copy(update={"content": []})
    hull = choice.model_copy(update={"logprobs": logprobs}).to_json().encode()
    before, after = hull.split(NO_ENTRIES)
    yield before + NO_ENTRIES[:-1]
    for start in range(0, len(entries), TOKENS_AT_ONCE):
        written = _ENTRIES.dump_json(list(entries[start : start + TOKENS_AT_ONCE]))
        yield (b"," if start else b"") + written[1:-1]
    yield b"]" + after
