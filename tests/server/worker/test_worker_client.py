"""The client against real workers with the fake engine."""

import asyncio
import os
import signal
import tempfile
from collections.abc import Callable, Sequence
from contextlib import aclosing
from pathlib import Path

import anyio
import numpy as np
import pytest

from lookm.config import EngineConfig
from lookm.errors import ModelError, PromptTooLongError, RequestError
from lookm.types import EngineStats, ImageInput, Request, TokenEvent
from server.fake import engine as fake
from server.worker import totals
from server.worker.client import EngineClient
from server.worker.restart import RestartPolicy
from server.worker.worker_errors import StoppingError, WorkerDiedError, WorkerUnavailableError
from tests.server.worker.conftest import Running

Make = Callable[..., Request]

pytestmark = pytest.mark.anyio


async def collect(client: EngineClient, request: Request) -> list[TokenEvent]:
    return [event async for event in client.submit(request)]


async def until(client: EngineClient, condition: Callable[[EngineStats], bool]) -> None:
    """Return after the first engine step whose statistics satisfy `condition`."""
    met = asyncio.Event()

    def observe(_: Sequence[TokenEvent], stats: EngineStats) -> None:
        if condition(stats):
            met.set()

    client.observers.append(observe)
    async with asyncio.timeout(10):
        await met.wait()
    client.observers.remove(observe)


async def test_submit_streams_the_answer(running: Running) -> None:
    async with running() as client:
        assert client.ready
        assert client.info is not None
        assert client.info.name == "fake"
        pixels = np.ones((1, 3, 336, 336), np.float32)
        images = tuple(ImageInput(str(i), {"pixel_values": pixels}, 5) for i in range(3))
        events = await collect(client, Request("a", (1, 2, 3), images))
        assert "".join(event.text for event in events).startswith("word0 word1")
        assert [e.finish for e in events if e.finish] == ["length"]
        assert events[0].cache is not None
        assert events[0].cache.image_tokens == 15


async def test_twenty_requests_share_the_worker_without_mixing(
    running: Running, make_request: Make
) -> None:
    async with running() as client:
        requests = [make_request(f"r{n}", max_tokens=n + 1) for n in range(20)]
        answers = await asyncio.gather(*(collect(client, request) for request in requests))
        for n, events in enumerate(answers):
            assert {event.request_id for event in events} == {f"r{n}"}
            assert len(events) == n + 1
            assert sum(event.finish is not None for event in events) == 1
        assert client.num_open == 0
        assert client.totals.generated_tokens_total == 210


async def test_refused_request_raises_the_engine_error(
    running: Running, make_request: Make
) -> None:
    async with running() as client:
        with pytest.raises(PromptTooLongError, match="Shorten") as too_long:
            await collect(client, make_request(max_tokens=10**6))
        assert too_long.value.param == "messages"
        with pytest.raises(RequestError):
            await collect(client, make_request(ids=(fake.REJECT_ID,)))
        assert len(await collect(client, make_request())) == 4
        assert client.num_open == 0


async def test_closing_the_stream_frees_the_request_in_the_engine(
    running: Running, make_request: Make
) -> None:
    async with running("fake:step_s=0.002") as client:
        async with aclosing(client.submit(make_request(max_tokens=5000))) as events:
            await anext(events)
            assert client.stats is not None
            assert client.stats.running == 1
        assert client.num_open == 0
        await until(client, lambda stats: stats.running == 0)
        assert len(await collect(client, make_request("b"))) == 4


async def test_cancelled_reader_aborts_even_where_it_may_not_await(
    running: Running, make_request: Make
) -> None:
    async with running("fake:step_s=0.002") as client:
        with anyio.move_on_after(0.05):
            await collect(client, make_request(max_tokens=5000))
        assert client.num_open == 0
        await until(client, lambda stats: stats.running == 0)


async def test_id_in_use_is_refused_until_its_last_event(
    running: Running, make_request: Make
) -> None:
    async with running("fake:step_s=0.002") as client:
        async with aclosing(client.submit(make_request("same", max_tokens=5000))) as events:
            await anext(events)
            with pytest.raises(ValueError, match="already running"):
                await collect(client, make_request("same"))
        with pytest.raises(ValueError, match="already running"):
            await collect(client, make_request("same"))
        await until(client, lambda stats: stats.running == 0)
        events = await collect(client, make_request("same"))
        assert [event.num_generated for event in events] == [1, 2, 3, 4]


async def test_killed_worker_ends_every_request_and_is_replaced(
    running: Running, make_request: Make
) -> None:
    async with running("fake:step_s=0.002") as client:
        tasks = [
            asyncio.create_task(collect(client, make_request(f"r{n}", max_tokens=5000)))
            for n in range(5)
        ]
        await until(client, lambda stats: stats.running == 5)
        before, first = client.totals, client.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(error, WorkerDiedError) for error in ended)
        assert len(set(map(id, ended))) == 5
        assert not client.ready
        assert (client.stats, client.totals.running, client.totals.capacity_bytes) == (None, 0, 0)
        with pytest.raises(WorkerUnavailableError, match="started again") as refused:
            await collect(client, make_request())
        assert refused.value.retry_after_s
        await client.wait_ready(30)
        assert (client.restarts, client.pid != first) == (1, True)
        assert len(await collect(client, make_request("r0"))) == 4
        for name in totals.COUNTERS:
            assert getattr(client.totals, name) >= getattr(before, name)
        assert client.totals.generated_tokens_total >= before.generated_tokens_total + 4


@pytest.mark.parametrize("mishap", [fake.RAISE_ID, fake.EXIT_ID])
async def test_step_that_breaks_ends_its_requests_and_the_next_one_works(
    running: Running, make_request: Make, mishap: int
) -> None:
    async with running() as client:
        with pytest.raises(WorkerDiedError, match="Send the request again"):
            await collect(client, make_request(ids=(mishap,)))
        await client.wait_ready(30)
        assert client.restarts == 1
        assert len(await collect(client, make_request())) == 4


async def test_worker_that_keeps_dying_is_replaced_for_as_long_as_it_takes(
    running: Running, make_request: Make
) -> None:
    async with running(max_start_failures=1) as client:
        for n in range(3):
            with pytest.raises(WorkerDiedError):
                await collect(client, make_request(f"r{n}", ids=(fake.RAISE_ID, n)))
            await client.wait_ready(30)
        assert (client.state, client.restarts) == ("ready", 3)
        assert len(await collect(client, make_request())) == 4


async def test_what_is_wrong_and_when_the_next_worker_comes_is_said(
    running: Running, make_request: Make
) -> None:
    async with running(first_delay_s=30.0, max_delay_s=60.0) as client:
        client._restarts.fast_failures = 1
        with pytest.raises(WorkerDiedError):
            await collect(client, make_request(ids=(fake.RAISE_ID,)))
        async with asyncio.timeout(30):
            while client.restarts == 0:
                await asyncio.sleep(0)
        assert "failed 2 times in a row and is started again in 60 s" in client.condition
        with pytest.raises(WorkerUnavailableError, match="again in 60 s") as refused:
            await collect(client, make_request())
        assert refused.value.retry_after_s == pytest.approx(65, abs=1)


async def test_model_that_cannot_load_is_reported_once_and_not_retried(
    capfd: pytest.CaptureFixture[str],
) -> None:
    client = EngineClient(EngineConfig(model="fake:fail=load"))
    await client.start()
    for _ in range(2):
        with pytest.raises(ModelError, match="remove fail=load"):
            await client.wait_ready(30)
    assert (client.state, client.restarts, client.pid) == ("failed", 0, None)
    await client.stop()
    assert "Traceback" not in capfd.readouterr().err


async def test_crash_while_loading_is_retried_a_bounded_number_of_times() -> None:
    policy = RestartPolicy(max_start_failures=2, first_delay_s=0.01)
    client = EngineClient(EngineConfig(model="fake:fail=load-crash"), restart_policy=policy)
    await client.start()
    with pytest.raises(WorkerUnavailableError, match="crashed while loading"):
        await client.wait_ready(30)
    assert client.restarts == 1
    await client.stop()


async def test_worker_that_cannot_be_spawned_is_a_failure_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    client = EngineClient(
        EngineConfig(model="fake"), restart_policy=RestartPolicy(max_start_failures=1)
    )
    await client.start()
    with pytest.raises(WorkerUnavailableError, match="/nonexistent/python"):
        await client.wait_ready(30)
    await client.stop()


async def test_wait_ready_has_a_time_limit() -> None:
    client = EngineClient(EngineConfig(model="fake:load_s=60"))
    await client.start()
    with pytest.raises(TimeoutError):
        await client.wait_ready(0.05)
    assert client.state == "starting"
    await client.stop()


async def test_drain_lets_requests_finish_and_refuses_new_ones(
    running: Running, make_request: Make
) -> None:
    async with running("fake:step_s=0.002") as client:
        task = asyncio.create_task(collect(client, make_request(max_tokens=20)))
        await until(client, lambda stats: stats.running == 1)
        drain = asyncio.create_task(client.drain(20))
        await asyncio.sleep(0)
        assert not client.ready
        with pytest.raises(WorkerUnavailableError, match="shutting down"):
            await collect(client, make_request("late"))
        assert await drain == 0
        assert (await task)[-1].finish == "length"


async def test_drain_ends_what_is_left_before_what_waits_to_be_read(
    running: Running, make_request: Make
) -> None:
    async with (
        running("fake:step_s=0.002") as client,
        aclosing(client.submit(make_request(max_tokens=5000))) as events,
    ):
        await anext(events)
        await until(client, lambda stats: stats.generated_tokens_total > 20)
        assert await client.drain(0.01) == 1
        with pytest.raises(StoppingError):
            await anext(events)


async def test_stop_ends_what_is_open(running: Running, make_request: Make) -> None:
    async with running("fake:step_s=0.002") as client:
        task = asyncio.create_task(collect(client, make_request(max_tokens=5000)))
        await until(client, lambda stats: stats.running == 1)
        await client.stop()
        with pytest.raises(WorkerUnavailableError, match="stopping"):
            await task
        await client.stop()
        with pytest.raises(WorkerUnavailableError, match="shutting down"):
            await collect(client, make_request())


async def test_observer_that_raises_costs_the_worker_but_not_the_api(
    running: Running, make_request: Make
) -> None:
    async with running() as client:

        def broken(_: Sequence[TokenEvent], __: EngineStats) -> None:
            raise ZeroDivisionError

        client.observers.append(broken)
        with pytest.raises(WorkerDiedError):
            await collect(client, make_request())
        client.observers.remove(broken)
        await client.wait_ready(30)
        assert len(await collect(client, make_request())) == 4


async def test_nothing_is_left_on_disk_and_long_temporary_folders_work(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("x" * 120)
    for folder in (tmp_path, deep):
        folder.mkdir(exist_ok=True)
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        async with running():
            assert [path for path in folder.iterdir() if path != deep] == []


def test_back_off_grows_is_bounded_and_ends_only_before_the_first_success() -> None:
    policy = RestartPolicy(max_start_failures=5, first_delay_s=1, max_delay_s=3, healthy_s=60)
    assert [policy.delay_s(n) for n in (1, 2, 3, 4, 5000)] == [1, 2, 3, 3, 3]
    assert [policy.gives_up(n, ever_ready=False) for n in (4, 5)] == [False, True]
    assert not policy.gives_up(5000, ever_ready=True)
    assert policy.count(4, served_s=1) == 5
    assert policy.count(4, served_s=61) == 1
    assert RestartPolicy().max_delay_s <= 60


def test_totals_add_counters_and_keep_only_current_gauges() -> None:
    old = EngineStats(1, 2, 3, 4, 5, generated_tokens_total=10, decode_s=1.5)
    new = EngineStats(10, 20, 30, 40, 50, generated_tokens_total=1, decode_s=0.5)
    both = totals.add(old, new)
    assert (both.generated_tokens_total, both.decode_s) == (11, 2.0)
    assert (both.capacity_bytes, both.used_bytes, both.running, both.waiting) == (10, 20, 40, 50)
    assert "decode_s" in totals.COUNTERS
    assert "running" not in totals.COUNTERS
