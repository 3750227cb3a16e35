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
