"""Decoding in a process of its own: whatever happens there, the next picture is decoded."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lookm.errors import QueueFullError
from server.media import MediaError, sandbox
from server.media.sandbox import Order, Sandbox
from tests.server.media.conftest import encode, picture

pytestmark = pytest.mark.anyio
PNG = encode(picture())


@pytest.fixture
async def running(anyio_backend: str, request: pytest.FixtureRequest) -> AsyncIterator[Sandbox]:
    made = Sandbox(1)
    yield made
    made.close()


def order(limit_s: float = 60, cpu_s: int = 60) -> Order:
    return Order("picture", {}, 2**20, cpu_s, limit_s)


def instead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, job: str) -> None:
    """Processes whose first word of business is `job`, in place of decoding `b"bad"`."""
    program = tmp_path / "program.py"
    program.write_text(
        "import ctypes, os, signal, sys, time\n"
        "from server.media import sandbox_process\n"
        "def picture(data, options):\n"
        f"    if data == b'bad':\n        {job}\n"
        "    return known(data, options)\n"
        "known = sandbox_process.picture\n"
        "sandbox_process.JOBS = {'picture': picture}\n"
        "sandbox_process.main()\n"
    )
    monkeypatch.setattr(sandbox, "COMMAND", (sandbox.COMMAND[0], str(program)))


@pytest.mark.parametrize(
    ("job", "code"),
    [
        ("ctypes.string_at(0)", "invalid_image"),
        ("os._exit(0)", "invalid_image"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "image_too_large"),
        ("bytearray(2**34)", "image_too_large"),
    ],
)
async def test_what_breaks_there_is_a_refusal_here_and_the_next_is_decoded(
    running: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, job: str, code: str
) -> None:
    instead(monkeypatch, tmp_path, job)
    with pytest.raises(MediaError) as refused:
        await running.run(order(), b"bad")
    assert refused.value.code == code
    facts, pixels = await running.run(order(), PNG)
    assert (facts["kept"], bytes(pixels)) == ([8, 6], picture().tobytes())


@pytest.mark.parametrize("job", ["time.sleep(600)", "sum(1 for _ in iter(int, 1))"])
async def test_what_hangs_or_never_ends_is_killed(
    running: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, job: str
) -> None:
    instead(monkeypatch, tmp_path, job)
    await running.run(order(), PNG)
    with pytest.raises(MediaError, match="too long") as refused:
        await running.run(order(limit_s=1), b"bad")
    assert refused.value.code == "image_too_large"
    await running.run(order(), PNG)


async def test_processor_time_is_bounded_even_if_nobody_here_looks(
    running: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    instead(monkeypatch, tmp_path, "sum(1 for _ in iter(int, 1))")
    with pytest.raises(MediaError, match="too long"):
        await running.run(order(cpu_s=1), b"bad")


async def test_a_process_that_died_between_two_pictures_is_replaced(running: Sandbox) -> None:
    await running.run(order(), PNG)
    process = running._idle.get()
    os.kill(process._process.pid, signal.SIGKILL)
    process._process.wait()
    running._idle.put(process)
    await running.run(order(), PNG)


async def test_who_leaves_is_waited_for_so_that_memory_is_not_promised_twice(
    running: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    going = tmp_path / "go"
    job = f"[time.sleep(0.01) for _ in iter(lambda: os.path.exists({str(going)!r}), True)]"
    instead(monkeypatch, tmp_path, job)
    await running.run(order(), PNG)
    work = asyncio.create_task(running.run(order(), b"bad"))
    await asyncio.sleep(0)
    work.cancel()
    await asyncio.sleep(0.05)
    assert not work.done()
    going.touch()
    with pytest.raises(asyncio.CancelledError):
        await work


async def test_a_machine_without_room_for_a_process_says_so(
    running: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "COMMAND", ("/nowhere",))
    with pytest.raises(QueueFullError, match="No process to decode in"):
        await running.run(order(), PNG)


def test_no_key_of_ours_is_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKM_API_KEYS", "secret")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert "secret" not in sandbox._environment().values()


def several(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, job: str) -> None:
    """Processes whose job gives many answers: 0, 1, 2, ... and in between does `job`."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, signal, sys, time\n"
        "from server.media import sandbox_process\n"
        "from server.media.media_error import MediaError\n"
        "def many(data, options):\n"
        "    for n in range(4):\n"
        "        yield {'n': n}, bytes([n]) * 2**20\n"
        f"        if n == 1 and data == b'bad':\n            {job}\n"
        "sandbox_process.JOBS = {'picture': many}\n"
        "sandbox_process.main()\n"
    )
    monkeypatch.setattr(sandbox, "COMMAND", (sandbox.COMMAND[0], str(program)))


async def answers(running: Sandbox, data: bytes, **limits: float) -> list[int]:
    found = []
    async for facts, pixels in running.each(order(**limits), data):
        assert bytes(pixels) == bytes([facts["n"]]) * 2**20
        found.append(facts["n"])
    return found


@pytest.mark.parametrize(
    ("job", "code"),
    [
        ("os._exit(0)", "invalid_image"),
        ("time.sleep(600)", "image_too_large"),
        ("raise MemoryError", "image_too_large"),
        ("raise MediaError('unsupported_image', 'no')", "unsupported_image"),
    ],
)
async def test_a_job_of_many_answers_gives_them_in_order_or_fails_as_a_whole(
    running: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, job: str, code: str
) -> None:
    several(monkeypatch, tmp_path, job)
    assert await answers(running, b"good") == [0, 1, 2, 3]
    process = running._idle.get()
    running._idle.put(process)
    assert await answers(running, b"good") == [0, 1, 2, 3]
    assert running._idle.qsize() == 1, "the same one"
    with pytest.raises(MediaError) as refused:
        await answers(running, b"bad", limit_s=5)
    assert refused.value.code == code
    assert await answers(running, b"good") == [0, 1, 2, 3]


async def test_the_limit_of_time_does_not_count_who_takes_the_answers(
    running: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    several(monkeypatch, tmp_path, "pass")
    await answers(running, b"good")
    found = []
    async for facts, _ in running.each(order(limit_s=5), b"good"):
        await asyncio.sleep(1.3)
        found.append(facts["n"])
    assert found == [0, 1, 2, 3]


async def test_answers_that_nobody_takes_end_the_process(
    running: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    several(monkeypatch, tmp_path, "pass")
    taken = running.each(order(), b"good")
    facts, _ = await anext(taken)
    assert facts == {"n": 0}
    await taken.aclose()
    assert running._idle.empty()
    work = asyncio.create_task(answers(running, b"good"))
    await asyncio.sleep(0)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert await answers(running, b"good") == [0, 1, 2, 3]
