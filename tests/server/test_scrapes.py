"""A flood of scrapes: few are written, and nobody reads old figures."""

import asyncio

import pytest

from server import scrapes
from server.scrapes import Scrapes

pytestmark = pytest.mark.anyio


class Counted:
    """An exposition that counts how often it is written."""

    def __init__(self) -> None:
        self.times = 0

    def expose(self) -> bytes:
        self.times += 1
        return str(self.times).encode()


async def test_a_flood_shares_one_scrape_and_the_next_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scrapes, "EVERY_S", 0.05)
    counted = Counted()
    shared = Scrapes(counted.expose)
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    first = await asyncio.gather(*(shared.read() for _ in range(100)))
    second = await asyncio.gather(*(shared.read() for _ in range(100)))
    assert (set(first), set(second), counted.times) == ({b"1"}, {b"2"}, 2)
    assert loop.time() - begun_s >= 0.05


async def test_who_leaves_takes_no_scrape_along() -> None:
    shared = Scrapes(Counted().expose)
    leaving, staying = (asyncio.create_task(shared.read()) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying == b"1"
