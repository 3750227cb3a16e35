"""What arriving prompts do to running streams: `lookm bench stall`, for any server.

Some streams of text run. First nobody arrives (the baseline); then prompts with many images arrive
one after the other, each with pictures that nobody has shown before.

A policy is of the prompts; streams have the server's default. A stream that ends is begun again
with other words; one that fails, or whose answer has no text (`empty`), is not. `stall_report` has
the numbers.

Knows OpenAI's chat request; knows nothing about engines.
"""

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import httpx
import numpy as np

from lookm.bench.records import Json
from server.bench.load.client import Sample, Target, answer
from server.bench.load.workload import DEFAULT_POLICY, Ask, chat_body, noise_url, some_words

POLL_S = 0.005
Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Stall:
    """What runs and what arrives. `nonce` makes pictures that no earlier run has shown.

    `warm_up` prompts come before those that are measured, without streams and beside them.
    `ignore_eos` asks for whole streams; not every server knows the field.
    """

    model: str
    streams: int = 2
    stream_tokens: int = 512
    prompts: int = 3
    images: int = 6
    image_side_px: int = 336
    words: int = 20
    answer_tokens: int = 2
    baseline_s: float = 5.0
    pause_s: float = 0.5
    warm_up: int = 1
    ignore_eos: bool = True
    seed: int = 0
    nonce: int = 0

    def described(self) -> Json:
        """For reports."""
        unsaid = ("model", "nonce")
        return {name: value for name, value in asdict(self).items() if name not in unsaid}


@dataclass(frozen=True, slots=True)
class Watched:
    """The requests of one policy; times are seconds from the start of its streams.

    `alone` are prompts without streams, on a clock of their own. `streams` are all answers of the
    streams, in the order they were begun; the last of each was cut.
    """

    alone: list[Sample]
    prompts: list[Sample]
    streams: list[Sample]
    baseline: Span


def watch(stall: Stall, target: Target, policy: str) -> Watched:
    """Prompts of a policy without streams, streams without prompts, then both together."""
    return asyncio.run(_watch(stall, target, policy))


async def _watch(stall: Stall, target: Target, policy: str) -> Watched:
    num_asks = stall.warm_up + stall.prompts
    asks = [prompt(stall, index, policy) for index in range(2 * num_asks)]  # before any clock
    async with target.connect() as http:
        arrivals = _Arrivals(http, target, stall.pause_s)
        alone = await arrivals.one_by_one(asks[:num_asks])
        arrivals.zero_s = time.monotonic()
        streams = _Streams(stall, http, target, arrivals.zero_s)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(streams.run(each)) for each in range(stall.streams)]
            await streams.heard()
            await arrivals.one_by_one(asks[num_asks : num_asks + stall.warm_up])
            await streams.heard()
            begin_s = streams.now_s()
            await asyncio.sleep(stall.baseline_s)
            baseline = (begin_s, streams.now_s())
            prompts = await arrivals.one_by_one(asks[num_asks + stall.warm_up :])
            await streams.heard()  # the last gap is open until then
            for task in tasks:
                task.cancel()
    return Watched(alone[stall.warm_up :], prompts, streams.samples, baseline)


def prompt(stall: Stall, index: int, policy: str) -> Ask:
    """Arriving prompt `index`: its pictures, then its words."""
    colours = np.random.default_rng((stall.seed, index, stall.nonce))
    text = some_words(np.random.default_rng((stall.seed, index, 1)), stall.words)
    urls = [noise_url(colours, stall.image_side_px) for _ in range(stall.images)]
    content = [
        *({"type": "image_url", "image_url": {"url": url}} for url in urls),
        {"type": "text", "text": text},
    ]
    messages = [{"role": "user", "content": content}]
    body = chat_body(stall.model, messages, stall.answer_tokens, policy)
    return Ask(index, policy, stall.answer_tokens, body)


@dataclass(slots=True)
class _Arrivals:
    """Sends prompts, each when the last one is answered, and a pause after each."""

    http: httpx.AsyncClient
    target: Target
    pause_s: float
    zero_s: float = field(default_factory=time.monotonic)

    async def one_by_one(self, asks: Sequence[Ask]) -> list[Sample]:
        """An answer or a failure for each."""
        samples = []
        for request in asks:
            sent_s = time.monotonic() - self.zero_s
            sample = Sample(request.index, request.policy, sent_s, sent_s)
            timeout_s = self.target.timeout_s
            await answer(self.http, request, sample, zero_s=self.zero_s, timeout_s=timeout_s)
            samples.append(sample)
            await asyncio.sleep(self.pause_s)
        return samples


class _Streams:
    """Answers that go on until their tasks are cancelled. `samples` grow while they are read."""

    def __init__(
        self, stall: Stall, http: httpx.AsyncClient, target: Target, zero_s: float
    ) -> None:
        self._stall = stall
        self._http = http
        self._target = target
        self._zero_s = zero_s
        self._last: dict[int, Sample] = {}
        self.samples: list[Sample] = []

    def now_s(self) -> float:
        """Since the start of the streams."""
        return time.monotonic() - self._zero_s

    async def run(self, number: int) -> None:
        """One answer after the other, until one fails."""
        for turn in itertools.count():
            request, now_s = self._ask(number, turn), self.now_s()
            sample = Sample(number, DEFAULT_POLICY, now_s, now_s)
            self._last[number] = sample
            self.samples.append(sample)
            timeout_s = self._target.timeout_s
            await answer(self._http, request, sample, zero_s=self._zero_s, timeout_s=timeout_s)
            if sample.error is None and not sample.piece_s:
                sample.error = "empty"
            if sample.error is not None:
                return

    async def heard(self) -> None:
        """Wait until every stream has said something from now on, or has failed."""
        since_s = self.now_s()

        def silent(number: int) -> bool:
            last = self._last.get(number)
            if last is None:
                return True
            return last.error is None and not (last.piece_s and last.piece_s[-1] > since_s)

        while any(map(silent, range(self._stall.streams))):
            await asyncio.sleep(POLL_S)

    def _ask(self, number: int, turn: int) -> Ask:
        stall = self._stall
        rng = np.random.default_rng((stall.seed, number, turn, 2, stall.nonce))
        messages = [{"role": "user", "content": some_words(rng, stall.words)}]
        body = chat_body(
            stall.model, messages, stall.stream_tokens, DEFAULT_POLICY, ignore_eos=stall.ignore_eos
        )
        return Ask(number, DEFAULT_POLICY, stall.stream_tokens, body)
