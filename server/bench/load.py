"""A fixed number of clients, each with one streamed chat of several images, started together.

Works against any OpenAI-compatible server. Knows HTTP and clocks; knows nothing about engines.
"""

import asyncio
import base64
import io
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from PIL import Image


@dataclass(frozen=True, slots=True)
class Workload:
    """What every client sends. Images are noise, different for each client."""

    model: str
    clients: int
    max_tokens: int
    images: int = 2
    image_side_px: int = 336
    words: int = 40
    extra: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Answered:
    """One client's answer: seconds from its request to the first and to the last piece of text."""

    first_s: float
    last_s: float
    pieces: int
    finish: str | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a workload took. `tokens_per_s` counts generated tokens of all clients over `wall_s`."""

    wall_s: float
    answers: tuple[Answered, ...]
    max_tokens: int

    @property
    def tokens_per_s(self) -> float:
        return len(self.answers) * self.max_tokens / self.wall_s

    @property
    def last_first_token_s(self) -> float:
        """Time to first token of the client that waited longest."""
        return max(answer.first_s for answer in self.answers)

    @property
    def complete(self) -> bool:
        """Whether every client got all the tokens it asked for."""
        return all(answer.finish == "length" for answer in self.answers)


async def run(base_url: str, workload: Workload) -> Outcome:
    """Send the workload once. Raises `httpx.HTTPStatusError` where a request is refused."""
    bodies = [body(workload, client) for client in range(workload.clients)]
    limits = httpx.Limits(max_connections=workload.clients)
    async with httpx.AsyncClient(base_url=base_url, timeout=3600, limits=limits) as http:
        started_s = time.monotonic()
        answers = await asyncio.gather(*(_ask(http, one) for one in bodies))
        wall_s = time.monotonic() - started_s
    return Outcome(wall_s, tuple(answers), workload.max_tokens)


def body(workload: Workload, client: int) -> dict[str, Any]:
    """The chat request of one client: images first, then a question, greedy, streamed."""
    images = [
        {"type": "image_url", "image_url": {"url": noise_url(client * 100 + i, workload)}}
        for i in range(workload.images)
    ]
    text = " ".join(f"w{10 + (7 * client + i) % 400}" for i in range(workload.words))
    return {
        "model": workload.model,
        "messages": [{"role": "user", "content": [*images, {"type": "text", "text": text}]}],
        "max_tokens": workload.max_tokens,
        "temperature": 0,
        "stream": True,
        **dict(workload.extra),
    }


def noise_image(seed: int, workload: Workload) -> Image.Image:
    """A picture of blocks in random colours; the same for the same seed."""
    rng = np.random.default_rng(seed)
    blocks = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    side = workload.image_side_px
    return blocks.resize((side, side), Image.Resampling.NEAREST)


def noise_url(seed: int, workload: Workload) -> str:
    """The same picture as a PNG data URI."""
    buffer = io.BytesIO()
    noise_image(seed, workload).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


async def _ask(http: httpx.AsyncClient, request: dict[str, Any]) -> Answered:
    started_s = time.monotonic()
    first_s = last_s = 0.0
    pieces, finish = 0, None
    async with http.stream("POST", "/v1/chat/completions", json=request) as response:
        if response.is_error:
            await response.aread()
            response.raise_for_status()
        async for chunk in _chunks(response):
            for choice in chunk.get("choices", ()):
                finish = choice.get("finish_reason") or finish
                if choice["delta"].get("content"):
                    last_s = time.monotonic() - started_s
                    first_s = first_s or last_s
                    pieces += 1
    return Answered(first_s, last_s, pieces, finish)


async def _chunks(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))
