"""Memory goes back to the system, and one key cannot take all places."""

import asyncio
import ctypes
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from lookm.errors import QueueFullError
from server import memory
from server.services import Gate
from server.settings import Settings
from server.turns import owned_by
from tests.server.requests import CHAT, chat, says_after, serving, until
from tests.server.test_errors import check_error

pytestmark = pytest.mark.anyio


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="another C library")
async def test_what_was_freed_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "GIVE_BACK_EVERY_S", 0.01)
    monkeypatch.setattr(memory, "GROWTH_BYTES", 2**20)
    before_bytes = memory.resident_bytes()
    task = asyncio.create_task(memory.give_back_memory())
    await asyncio.sleep(0)
    pieces: list[bytes] = []
    while memory.resident_bytes() < before_bytes + 100 * 2**20:  # what was free is used first
        pieces += [bytes(60_000) for _ in range(100)]
    last = bytearray(60_000)  # keeps the heap's end
    pieces.clear()
    async with asyncio.timeout(30):
        while memory.resident_bytes() > before_bytes + 60 * 2**20:
            await asyncio.sleep(0.01)
    task.cancel()
    assert last


def test_files_the_kernel_could_drop_are_not_used_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 0 < memory.used_ratio() <= 1
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.used_ratio() <= 1
    (tmp_path / "memory.max").write_text(str(1000))
    (tmp_path / "memory.current").write_text(str(990))
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 990\n")
    assert memory.used_ratio() <= 1
    (tmp_path / "memory.stat").write_text("inactive_file 0\n")
    assert memory.used_ratio() >= 0.99


def test_a_key_has_at_most_its_places() -> None:
    gate = Gate(10, lambda _: 2)
    refused = pytest.raises(QueueFullError, match="this API key")
    with owned_by("a"), gate.entered(2), refused, gate.entered():
        pass
    full = pytest.raises(QueueFullError, match="10 requests")
    with ExitStack() as stack:
        for key, places in (("a", 2), ("b", 2), ("", 6)):
            stack.enter_context(owned_by(key))
            stack.enter_context(gate.entered(places))
        with full, gate.entered():
            pass
    assert not gate._inside


async def test_a_key_over_its_places_waits_then_gets_429_and_others_are_served() -> None:
    release = asyncio.Event()
    settings = Settings(
        model="fake", api_keys="one,two", max_running=4, max_waiting=8, max_running_per_key=1
    )
    one, two = ({"authorization": f"Bearer {key}"} for key in ("one", "two"))
    async with serving(settings, says_after(release)) as (client, engine, app):
        ask = partial(client.post, CHAT)
        held = asyncio.create_task(ask(json=chat(), headers=one))
        await until(lambda: engine.open == 1)
        waiting = [
            asyncio.create_task(ask(json=chat(stream=stream), headers=one))
            for stream in (False, True)
        ]
        await until(lambda: app.state.services.gate._inside.total() == 3)
        await until(lambda: app.state.services.key_turns.num_waiting == 2)
        scraped = await client.get("/metrics", headers=one)
        assert "\nlookm_requests_waiting 2.0\n" in scraped.text
        check_error(await ask(json=chat(), headers=one), 429, "queue_full", None)
        check_error(await ask(json=chat(n=4), headers=two), 400, "invalid_value", "n")
        other = asyncio.create_task(ask(json=chat(n=3), headers=two))
        await until(lambda: engine.open == 2)
        release.set()
        answers = [await each for each in (held, *waiting, other)]
        assert [answer.status_code for answer in answers] == [200] * 4
        assert answers[2].text.endswith("data: [DONE]\n\n")
        assert len(answers[3].json()["choices"]) == 3


def test_the_share_of_a_key_in_the_queue_is_that_of_its_places() -> None:
    def most(running: int | None) -> int | None:
        return Settings(max_running=64, max_waiting=256, max_running_per_key=running).max_per_key

    assert [most(n) for n in (None, 1, 16, 64, 100)] == [None, 5, 80, 320, 356]
