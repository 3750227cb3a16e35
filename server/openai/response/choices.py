"""One request, n answers: n requests of the engine that share a prompt, and their events as one.

Every choice is an engine request of its own, with its own cache. What is done to one is done to all
of them: the first failure ends the others, and so does a client that leaves. Knows nothing about
HTTP.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, replace

from lookm.types import Request, TokenEvent

Events = AsyncGenerator[TokenEvent]


@dataclass(frozen=True, slots=True)
class Told:
    """An event, and the index of the choice that it belongs to."""

    choice: int
    event: TokenEvent


Choices = AsyncGenerator[Told]


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
        yield replace(request, id=f"{request.id}-{choice}", sampling=sampling)


async def merged(streams: Sequence[Events]) -> Choices:
    """The events of all choices, as they come. Closing it, or a failure of one, closes them all."""
    if len(streams) == 1:  # the common case needs no tasks
        async with contextlib.aclosing(streams[0]) as only:
            async for event in only:
                yield Told(0, event)
        return
    told: asyncio.Queue[Told | Exception | None] = asyncio.Queue()
    tasks = [asyncio.create_task(_pump(n, events, told)) for n, events in enumerate(streams)]
    try:
        num_open = len(tasks)
        while num_open:
            item = await told.get()
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


async def opening(events: Choices, num_choices: int) -> list[Told]:
    """The first events: until every choice has begun, or one has told of a second step.

    The engine takes in all choices before its second step, so that one which it refuses (the queue
    is full) fails the request while there still is a status to say so.
    """
    seen: list[Told] = []
    begun: set[int] = set()
    async for told in events:
        seen.append(told)
        second_step = told.choice in begun
        begun.add(told.choice)
        if second_step or len(begun) == num_choices:
            break
    return seen


async def _pump(
    choice: int, events: Events, told: "asyncio.Queue[Told | Exception | None]"
) -> None:
    """Move events into the queue, then how they ended: None, or what went wrong."""
    try:
        async with contextlib.aclosing(events):
            async for event in events:
                told.put_nowait(Told(choice, event))
    except Exception as error:  # noqa: BLE001 - carried to the other side, and raised there
        told.put_nowait(error)
    else:
        told.put_nowait(None)


def _signed64(seed: int) -> int:
    return (seed + 2**63) % 2**64 - 2**63
