"""What the server says of its memory while it is measured: `/metrics`, a few times a second.

Knows the names of this server's series. A server without them gives no samples, not zeros.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx

from server.bench.load.client import Target

INTERVAL_S = 0.1
SERIES = {
    "lookm_kv_cache_used_bytes": "used_bytes",
    "lookm_kv_cache_capacity_bytes": "capacity_bytes",
    "lookm_requests_running": "running",
    "lookm_requests_waiting": "waiting",
    "lookm_preemptions_total": "preemptions",
}


@dataclass(frozen=True, slots=True)
class KvSample:
    """One look, at a time of the monotonic clock. `preemptions` is the server's total so far."""

    at_s: float
    used_bytes: int
    capacity_bytes: int
    running: int
    waiting: int
    preemptions: int


@contextlib.asynccontextmanager
async def polled(http: httpx.AsyncClient) -> AsyncIterator[list[KvSample]]:
    """A list that grows while the block runs; its first and last samples are around the load."""
    samples: list[KvSample] = []
    await _look(http, samples)
    if not samples:
        yield samples
        return
    polling = asyncio.create_task(_poll(http, samples))
    try:
        yield samples
    finally:
        polling.cancel()
        await asyncio.gather(polling, return_exceptions=True)
        await _look(http, samples)


def capacity_bytes(target: Target) -> int | None:
    """What the pool holds; None where the server does not tell."""
    with contextlib.suppress(httpx.HTTPError):
        response = httpx.get(f"{target.base_url}/metrics", headers=target.headers)
        if response.is_success and (values := read(response.text)) is not None:
            return values["capacity_bytes"]
    return None


def read(text: str) -> dict[str, int] | None:
    """The series above from the text of `/metrics`; None where one is missing."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name in SERIES:
            found[SERIES[name]] = int(float(value))
    return found if len(found) == len(SERIES) else None


async def _poll(http: httpx.AsyncClient, samples: list[KvSample]) -> None:
    while True:
        await asyncio.sleep(INTERVAL_S)
        await _look(http, samples)


async def _look(http: httpx.AsyncClient, samples: list[KvSample]) -> None:
    with contextlib.suppress(httpx.HTTPError):
        response = await http.get("/metrics", timeout=5)
        values = read(response.text) if response.is_success else None
        if values is not None:
            samples.append(KvSample(time.monotonic(), **values))
