"""One request, n answers: n requests of the engine that share a prompt, and their events as one.

Every choice is an engine request of its own, with its own cache. What is done to one is done to all
of them: the first failure ends the others, and so does a client that leaves. Knows nothing about
HTTP.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lookm.types import Request, TokenEvent
from server.api_errors import ApiError
from server.openai.abort import abort_at
from server.openai.schemas.usage import KeptPositionsUsage, TimingsUsage
from server.request_metrics import RequestMetrics
from server.turns import Turns
from server.worker.streams import clear
from server.worker.worker_errors import StoppingError


@dataclass(frozen=True, slots=True)
class ChoiceEvent:
    """An event, and the index of the choice that it belongs to. `positions` and `timings` are the
    event's, as they are sent; `tokens_per_image`, with the last one, the prompt's."""

    choice: int
    event: TokenEvent
    positions: KeptPositionsUsage | None = None
    timings: TimingsUsage | None = None
    tokens_per_image: tuple[int, ...] = ()


ChoiceEvents = AsyncGenerator[ChoiceEvent]
Submit = Callable[[Callable[[], None]], AsyncGenerator[TokenEvent]]  # called when it is accepted


def each_choice(request: Request, num_choices: int) -> Iterator[Request]:
    """The engine's requests. A seeded choice i is what a request with `seed + i` would get."""
    if num_choices == 1:
        yield request
        return
    seed = request.sampling.seed
    for choice in range(num_choices):
        sampling = request.sampling
        if seed is not None:
            sampling = replace(sampling, seed=_signed64(seed + choice))
        yield replace(
            request,
            id=f"{request.id}-{choice}",
            sampling=sampling,
            group=request.id,
            positions=request.positions and choice == 0,  # the others hold the same
        )


async def choice_events(
    choice: int,
    events: AsyncGenerator[TokenEvent],
    metrics: RequestMetrics,
    deadline_s: float | None,
) -> ChoiceEvents:
    """The engine's events of one choice, measured, up to its terminal one.

    Raises `ApiError` for a terminal event that is a failure, or at the deadline, a time of the
    event loop's clock. Closing it closes `events`, which aborts the engine's request.
    """
    try:
        async with contextlib.aclosing(events):
            while (event := await abort_at(deadline_s, anext(events, None))) is not None:
                metrics.event(event)
                _raise_failure(event)
                yield ChoiceEvent(choice, event)
    except Exception:
        metrics.failed()
        raise
    finally:
        metrics.close()


async def in_turn(
    turns: Turns, submit: Submit, accepted: Callable[[], None]
) -> AsyncGenerator[TokenEvent]:
    """The events of a choice, submitted when it has its turn.

    While it waits for that it counts as accepted: the gate has a place for it.
    """
    if not turns.has_place():
        accepted()
        accepted = _nothing
    async with turns.turn(), contextlib.aclosing(submit(accepted)) as events:
        async for event in events:
            yield event


def _nothing() -> None:
    pass


def merged(choices: Sequence[ChoiceEvents]) -> ChoiceEvents:
    """The events of all choices, as they come. Closing it, or a failure of one, closes them all."""
    return choices[0] if len(choices) == 1 else _merged(choices)


async def first_events(events: ChoiceEvents, num_choices: int) -> list[ChoiceEvent]:
    """The first events: until every choice has begun, or one has made a second step.

    The engine takes in all choices before its second step, so that one which it refuses (the queue
    is full) fails the request while there still is a status to say so.
    """
    first: list[ChoiceEvent] = []
    begun: set[int] = set()
    async for item in events:
        first.append(item)
        second_step = item.choice in begun
        begun.add(item.choice)
        if second_step or len(begun) == num_choices:
            break
    return first


class Acceptance:
    """Tells when the engine has accepted all choices of a request; each calls it once."""

    def __init__(self, num_choices: int) -> None:
        self._num_left = num_choices
        self._complete = asyncio.Event()

    def __call__(self) -> None:
        self._num_left -= 1
        if self._num_left == 0:
            self._complete.set()

    async def or_ended(self, work: asyncio.Task[Any], grace_s: float) -> None:
        """Return when that is so and `grace_s` have passed, or `work` has ended."""
        complete = asyncio.create_task(self._complete.wait())
        try:
            await asyncio.wait({complete, work}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                await asyncio.wait({work}, timeout=grace_s)
        finally:
            complete.cancel()


async def _merged(choices: Sequence[ChoiceEvents]) -> ChoiceEvents:
    # Bounded: nothing is prepared for a client that does not read.
    queue: asyncio.Queue[ChoiceEvent | Exception | None] = asyncio.Queue(len(choices))
    tasks = [asyncio.create_task(_pump(events, queue)) for events in choices]
    try:
        num_open = len(tasks)
        while num_open:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                num_open -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(
    events: ChoiceEvents, queue: "asyncio.Queue[ChoiceEvent | Exception | None]"
) -> None:
    """Move events into the queue, then how they ended: None, or what went wrong."""
    try:
        async with contextlib.aclosing(events):
            async for item in events:
                await queue.put(item)
    except Exception as error:  # noqa: BLE001 - carried to the other side, and raised there
        if isinstance(error, StoppingError):
            clear(queue)
        await queue.put(error)
    else:
        await queue.put(None)


def _raise_failure(event: TokenEvent) -> None:
    if event.finish == "error":
        raise ApiError("engine_failed", event.error or "The engine could not answer this request.")
    if event.finish == "abort":
        raise ApiError("engine_unavailable", "The server is stopping. Send the request again.")


def _signed64(seed: int) -> int:
    return (seed + 2**63) % 2**64 - 2**63
