"""Sends a workload on a schedule and collects what came back.

Requests are drawn and written before the clock starts (fixed clients with only a duration draw
theirs on the way), so that the generator's own work is not in the measurement. How late it was
nevertheless is reported with the results. Knows asyncio; judges nothing.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import httpx

from server.bench.load.arrivals import Schedule, poisson
from server.bench.load.client import Sample, Target, ask
from server.bench.load.polling import KvSample, polled
from server.bench.load.workload import Ask, Workload, make_ask

WARM_UP_INDEX = 10_000_000  # their pictures are not those of the measured requests
WARM_UP_CLIENTS = 4

OnAnswer = Callable[[Sample], None]


@dataclass(frozen=True, slots=True)
class Run:
    """Every request, in the order of their index, and the server's memory over time.

    Times are seconds from the start of the schedule. `wall_s` goes to the end of the
    last answer. `kv` is empty where the server has no `/metrics` of ours.
    """

    samples: tuple[Sample, ...]
    kv: tuple[KvSample, ...]
    wall_s: float


def run(
    target: Target,
    workload: Workload,
    schedule: Schedule,
    *,
    warm_up: int = 0,
    on_answer: OnAnswer = lambda _: None,
) -> Run:
    """Send the workload; `on_answer` gets every answer as it ends. Blocks until all have ended."""
    return asyncio.run(_run(target, workload, schedule, warm_up, on_answer))


async def _run(
    target: Target, workload: Workload, schedule: Schedule, warm_up: int, on_answer: OnAnswer
) -> Run:
    async with target.connect() as http:
        if warm_up:
            first = _Supply(workload, warm_up, start=WARM_UP_INDEX)
            clients = min(warm_up, schedule.concurrency or WARM_UP_CLIENTS)
            await _Sender(http, target, lambda _: None).closed_loop(first, clients, None)
        dues_s = None if schedule.rate_per_s is None else [*poisson(schedule, workload.seed)]
        count = schedule.num_requests if dues_s is None else len(dues_s)
        asks = _Supply(workload, count)
        async with polled(http) as kv:
            sender = _Sender(http, target, on_answer)
            if dues_s is not None:
                await sender.open_loop(asks, dues_s)
            else:
                assert schedule.concurrency is not None
                await sender.closed_loop(asks, schedule.concurrency, schedule.duration_s)
    samples = sorted(sender.samples, key=lambda sample: sample.index)
    looks = (replace(look, at_s=look.at_s - sender.zero_s) for look in kv)
    return Run(tuple(samples), tuple(looks), max((s.end_s for s in samples), default=0.0))


class _Sender:
    """The two loops. `zero_s` is the start of the schedule on the monotonic clock."""

    def __init__(self, http: httpx.AsyncClient, target: Target, on_answer: OnAnswer) -> None:
        self._http = http
        self._target = target
        self._on_answer = on_answer
        self.zero_s = time.monotonic()
        self.samples: list[Sample] = []

    async def open_loop(self, asks: "_Supply", dues_s: Sequence[float]) -> None:
        """Each request at its time, however many are under way."""
        async with asyncio.TaskGroup() as group:
            for request, due_s in zip(asks.ready, dues_s, strict=True):
                await asyncio.sleep(self.zero_s + due_s - time.monotonic())
                group.create_task(self._send(request, due_s))

    async def closed_loop(
        self, asks: "_Supply", num_clients: int, duration_s: float | None
    ) -> None:
        """Each client sends its next request when its last one has ended."""

        async def client() -> None:
            while duration_s is None or time.monotonic() - self.zero_s < duration_s:
                if (request := await asks.take()) is None:
                    return
                await self._send(request, time.monotonic() - self.zero_s)

        async with asyncio.TaskGroup() as group:
            for _ in range(num_clients):
                group.create_task(client())

    async def _send(self, request: Ask, due_s: float) -> None:
        sample = await ask(
            self._http, request, due_s=due_s, zero_s=self.zero_s, timeout_s=self._target.timeout_s
        )
        self.samples.append(sample)
        self._on_answer(sample)


class _Supply:
    """`count` requests, all written now (`ready`); or without end, each written when taken."""

    def __init__(self, workload: Workload, count: int | None, start: int = 0) -> None:
        self._workload = workload
        written = range(start, start + (count or 0))
        self.ready = [make_ask(workload, index) for index in written]
        self._rest = iter(self.ready)
        self._further: Iterator[int] = itertools.count(start) if count is None else iter(())

    async def take(self) -> Ask | None:
        """The next request; written in a thread, for the loop keeps the time of the others."""
        if (request := next(self._rest, None)) is not None:
            return request
        if (index := next(self._further, None)) is None:
            return None
        return await asyncio.to_thread(make_ask, self._workload, index)
