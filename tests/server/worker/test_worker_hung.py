"""A worker that lives and does nothing is replaced; one that only takes its time is not."""

import asyncio
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from lookm.progress import Piece
from lookm.types import Request
from server.fake import engine as fake
from server.worker.activity import Activity
from server.worker.client import EngineClient
from server.worker.heartbeat import Beat
from server.worker.hung import Patience, Vigil
from server.worker.worker_errors import WorkerDiedError
from tests.server.worker.conftest import Running

Make = Callable[..., Request]

SHORT = Patience(silent_s=1.5, idle_step_s=1.5)
NOTICED_S = 20  # on a busy machine


async def replaced(client: EngineClient, pid: int | None) -> None:
    async with asyncio.timeout(30):
        while client.pid == pid or not client.ready:
            await asyncio.sleep(0.02)


@pytest.mark.anyio
async def test_a_worker_that_is_stopped_fails_its_requests_and_is_replaced(
    running: Running, make_request: Make
) -> None:
    causes: list[str] = []
    async with running(patience=SHORT) as client:
        client.failure_observers.append(causes.append)
        pid = client.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(WorkerDiedError):
            await asyncio.wait_for(anext(client.submit(make_request("a"))), NOTICED_S)
        await replaced(client, pid)
        assert (client.restarts, causes) == (1, ["stopped"])
        assert [event async for event in client.submit(make_request("b"))]


@pytest.mark.anyio
async def test_a_worker_that_is_stopped_is_replaced_before_anybody_asks(running: Running) -> None:
    async with running(patience=SHORT) as client:
        pid = client.pid
        os.kill(pid, signal.SIGSTOP)
        await replaced(client, pid)


@pytest.mark.anyio
async def test_a_step_that_never_ends_is_found_after_the_client_has_left(
    running: Running, make_request: Make
) -> None:
    causes: list[str] = []
    async with running(patience=SHORT) as client:
        client.failure_observers.append(causes.append)
        pid = client.pid
        events = client.submit(make_request("a", ids=(fake.HANG_ID,)))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await anext(events)
        await events.aclose()
        await replaced(client, pid)
        assert causes == ["hung"]


@pytest.mark.anyio
async def test_steps_as_long_as_the_others_and_long_silence_are_no_alarm(
    running: Running, make_request: Make
) -> None:
    """Patience is less than a step takes: the first step of a worker must be shorter."""
    patience = Patience(idle_step_s=0.3)
    async with running("fake:step_s=0.1", patience=patience) as client:
        pid = client.pid
        await asyncio.sleep(1)
        assert len([e async for e in client.submit(make_request("a", max_tokens=8))]) == 8
        assert (client.pid, client.restarts) == (pid, 0)


@pytest.mark.anyio
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_a_step_that_computes_for_ever_is_found_by_what_others_took(
    running: Running, make_request: Make
) -> None:
    causes: list[str] = []
    async with running(patience=Patience(piece_s=1.0)) as client:
        client.failure_observers.append(causes.append)
        assert [event async for event in client.submit(make_request("a", max_tokens=2))]
        pid = client.pid
        events = client.submit(make_request("b", ids=(fake.SPIN_ID,)))
        with pytest.raises(WorkerDiedError):
            await asyncio.wait_for(anext(events), NOTICED_S)
        await replaced(client, pid)
        assert causes == ["hung"]


def judged(
    took_s: float,
    longest_s: float,
    *,
    active: bool = True,
    gpu: bool = False,
    step_s: float | None = None,
) -> bool:
    now_s = 10_000.0
    began_s = now_s - took_s
    patience = Patience(step_s=step_s)
    vigil = Vigil(patience, on_gpu=gpu, ready=True, begun_s=1.0, heard_s=now_s)
    vigil.active_s = now_s if active else began_s
    return vigil.verdict(Beat(7, began_s, longest_s), now_s) is not None


def test_a_step_may_take_what_steps_take_and_what_the_process_does_meanwhile() -> None:
    assert not judged(290, 0.1)  # a CPU that computes: a large image, a small machine
    assert judged(301, 0.1)
    assert not judged(590, 100)  # steps do take long here
    assert judged(601, 100)
    assert judged(16, 0.1, active=False)
    assert not judged(14, 0.1, active=False)
    assert not judged(90, 10, active=False)
    assert judged(61, 0.1, gpu=True)  # the host waits actively for a kernel
    assert not judged(50, 0.1, gpu=True)  # compiles one
    assert not judged(250, 30, gpu=True)


def test_the_operator_knows_best_how_long_a_step_computes() -> None:
    assert not judged(800, 0.1, step_s=900)
    assert judged(901, 0.1, step_s=900, gpu=True)
    assert judged(16, 0.1, step_s=900, active=False)
    assert judged(6, 1, step_s=5)
    assert judged(6, 1, step_s=5, active=False)


def computing(busy_s: float, expected_s: float, **given: Any) -> bool:
    vigil = Vigil(Patience(given.get("step_s")), on_gpu=given.get("gpu", False), ready=True)
    heart = SimpleNamespace(heard_s=100.0, beat=Beat(7, 90.0, 0.1, Piece(95.0, expected_s)))
    vigil.look(heart, 1000.0)  # type: ignore[arg-type]
    heart.heard_s = vigil.active_s = 101.0
    vigil.look(heart, 1000.0 + busy_s)  # type: ignore[arg-type]
    return vigil.verdict(heart.beat, 101.0) is not None


def test_a_piece_of_a_step_may_take_what_such_pieces_took_of_a_processor() -> None:
    assert computing(16, 0.001)
    assert not computing(14, 0.001)
    assert not computing(90, 10)
    assert computing(101, 10)
    assert not computing(200, math.inf)  # the first of its kind: the step's limit holds
    assert not computing(50, 0.001, gpu=True)
    assert computing(61, 0.001, gpu=True)
    assert not computing(250, 0.001, step_s=300)  # the operator knows best


def test_who_computes_and_says_nothing_hangs() -> None:
    def silent(busy_s: float) -> bool:
        heart = SimpleNamespace(heard_s=60.0, beat=Beat())
        vigil = Vigil(Patience(), ready=True, active_s=100.0)
        for each in (0.0, busy_s):
            vigil.look(heart, each)  # type: ignore[arg-type]
        return vigil.verdict(heart.beat, 100.0) is not None

    assert silent(31)
    assert not silent(29)


def test_silence_counts_from_the_last_sign_of_any_kind() -> None:
    def silent(heard_s: float, active_s: float, *, ready: bool = True) -> bool:
        vigil = Vigil(Patience(), ready=ready, heard_s=heard_s, active_s=active_s, begun_s=90)
        error = vigil.verdict(Beat(), 100.0)
        return error is not None and error.cause == "stopped"

    assert silent(96, 96)
    assert not silent(98, 96)
    assert not silent(90, 99)  # swapped out, or starved: slow, not hung
    assert not silent(99, 90)
    assert not silent(80, 75, ready=False)
    assert silent(60, 60, ready=False)


def test_a_worker_that_never_gets_ready_is_given_up() -> None:
    vigil = Vigil(Patience(load_s=60), begun_s=100.0, heard_s=170.0, active_s=170.0)
    assert vigil.verdict(Beat(), 150.0) is None
    error = vigil.verdict(Beat(), 170.0)
    assert error is not None
    assert error.cause == "load"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_computes_is_active_and_what_is_stopped_is_not() -> None:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        activity = Activity(process.pid)
        assert activity.seen()
        while activity.busy_s < 0.2:
            time.sleep(0.05)
            assert activity.seen()
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        activity.seen()
        busy_s = activity.busy_s
        assert not activity.seen()
        assert activity.busy_s == busy_s
    finally:
        process.kill()
        process.wait()
