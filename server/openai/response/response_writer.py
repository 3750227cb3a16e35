"""A response's answer in OpenAI's shape, whole or as named, numbered events without a `[DONE]`.

    created, in_progress, (events of items) ..., then one of completed, incomplete, failed

The same items are made of both: a whole answer is its stream without the frames. Knows framing and
the order of events; `output_items` makes the items, `ChatChunks` reads calls and thoughts.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from server.api_errors import ApiError
from server.openai.response.chat_chunks import ChatChunks
from server.openai.response.choices import ChoiceEvent
from server.openai.response.logprobs import chat_logprobs
from server.openai.response.output_items import ItemEvent, OutputItems
from server.openai.response.writers import Collected, usage_of_all
from server.openai.schemas.response_answers import (
    Incomplete,
    OutputAnswer,
    ResponseAnswer,
    ResponseFailure,
    Status,
    response_usage,
)
from server.openai.schemas.usage import Answer


@dataclass(slots=True)
class ResponseWriter:
    """A `writers.Writer`. `answer` is the response before it has begun, which every event repeats;
    `finished` is told what a stream's output and JSON were; `explained` says an error in the
    words of responses."""

    answer: ResponseAnswer
    chunks: ChatChunks
    explained: Callable[[ApiError], ApiError]
    finished: Callable[[Sequence[OutputAnswer], bytes], None]
    items: OutputItems = field(default_factory=OutputItems)
    last: ChoiceEvent | None = None
    _number: int = 0

    def whole(self, collected: Sequence[Collected]) -> ResponseAnswer:
        self._restart()
        (one,) = collected
        for item in self._replayed(one):
            for _ in self._add(item):
                pass
        return self._done(one)

    def begin(self, num_choices: int) -> bytes:
        assert num_choices == 1
        self._restart()
        begun = ("response.created", "response.in_progress")
        return self._frames((kind, {"response": self.answer}) for kind in begun)

    def add(self, item: ChoiceEvent) -> bytes:
        if item.event.finish is not None:
            self.last = item
        return self._frames(self._add(item))

    def end(self) -> bytes:
        assert self.last is not None, "every answered request has a terminal event"
        last = self.last
        more = last.positions, last.timings, last.tokens_per_image
        done = self._done(Collected("", (), last.event, *more))
        self.finished(done.output, done.to_json().encode())
        return self._frames([(f"response.{done.status}", {"response": done})])

    def fail(self, error: ApiError) -> bytes:
        begun = b"" if self._number else self.begin(1)
        error = self.explained(error)
        failure = ResponseFailure(
            code="server_error" if error.status >= 500 else "invalid_prompt",
            message=error.message,
            param=error.param,
            type=error.type,
        )
        failed = self._as("failed", error=failure, output=self.items.partial(), store=False)
        return begun + self._frames([("response.failed", {"response": failed})])

    def _restart(self) -> None:
        self.items = OutputItems()
        self.chunks.begin(0)

    def _replayed(self, one: Collected) -> Iterator[ChoiceEvent]:
        """The events that a whole answer came as, or where nobody asks for that, one."""
        by_token = one.logprobs or self.chunks.thinkers[0] is not None
        texts = one.texts if by_token else [one.text]
        for n, text in enumerate(texts, 1):
            event = replace(
                one.last,
                text=text,
                num_generated=n,
                logprobs=one.logprobs[n - 1] if n <= len(one.logprobs) else None,
                finish=one.last.finish if n == len(texts) else None,
            )
            yield ChoiceEvent(0, event)

    def _add(self, item: ChoiceEvent) -> Iterator[ItemEvent]:
        event = item.event
        entries = chat_logprobs([event.logprobs]).content if event.logprobs else ()
        deltas = list(self.chunks.deltas(item))
        yield from self.items.add(deltas, entries, event.num_generated)
        if event.finish is not None:
            yield from self.items.end("incomplete" if event.finish == "length" else "completed")

    def _done(self, one: Collected) -> ResponseAnswer:
        usage = response_usage(usage_of_all([one]), self.items.reasoning_tokens)
        if one.last.finish == "length":
            details = Incomplete(reason="max_output_tokens")
            return self._as("incomplete", output=self.items.output, usage=usage,
                            incomplete_details=details)  # fmt: skip
        at = int(time.time())
        return self._as("completed", output=self.items.output, usage=usage, completed_at=at)

    def _as(self, status: Status, **fields: Any) -> ResponseAnswer:
        return self.answer.model_copy(update={"status": status, **fields})

    def _frames(self, events: Iterable[ItemEvent]) -> bytes:
        return b"".join(self._frame(kind, fields) for kind, fields in events)

    def _frame(self, kind: str, fields: dict[str, Any]) -> bytes:
        numbered = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        shown = (f"{json.dumps(name)}:{_json(value)}" for name, value in numbered.items())
        return f"event: {kind}\ndata: {{{','.join(shown)}}}\n\n".encode()


def _json(value: object) -> str:
    return value.to_json() if isinstance(value, Answer) else json.dumps(value)
