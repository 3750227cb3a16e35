"""A prompt that ends workers is refused in time; none that did not is."""

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import aclosing

import pytest

from lookm.types import Request, Sampling
from server.fake import engine as fake
from server.worker.hung import Patience
from server.worker.suspects import MAX_SUSPECTS, REFUSED_S, Suspects
from server.worker.worker_errors import Cause, PromptRefusedError, WorkerDiedError
from tests.server.worker.conftest import Running

Make = Callable[..., Request]


async def answer(running_client: object, request: Request) -> int:
    return len([event async for event in running_client.submit(request)])


@pytest.mark.anyio
@pytest.mark.parametrize("mishap", [fake.RAISE_ID, fake.EXIT_ID, fake.HANG_ID])
async def test_a_prompt_that_was_alone_twice_is_refused_and_others_are_not(
    running: Running, make_request: Make, mishap: int
) -> None:
    async with running(patience=Patience(idle_step_s=1.0)) as client:
        for n in range(2):
            with pytest.raises(WorkerDiedError):
                await answer(client, make_request(f"bad{n}", ids=(mishap, 5)))
            await client.wait_ready(30)
        with pytest.raises(PromptRefusedError, match="refused for 60 min"):
            await answer(client, make_request("again", ids=(mishap, 5), seed=7, max_tokens=2))
        assert client.restarts == 2
        assert await answer(client, make_request("good")) == 4


@pytest.mark.anyio
async def test_a_prompt_whose_worker_somebody_kills_is_never_refused(
    running: Running, make_request: Make
) -> None:
    async with running("fake:step_s=0.002") as client:
        for n in range(3):
            async with aclosing(client.submit(make_request(f"r{n}", max_tokens=5000))) as events:
                await anext(events)
                assert client.pid is not None
                os.kill(client.pid, signal.SIGKILL)
                with pytest.raises(WorkerDiedError):
                    async for _ in events:
                        pass
            await client.wait_ready(30)
        assert await answer(client, make_request("last")) == 4


@pytest.mark.anyio
async def test_a_prompt_beside_the_poisonous_one_is_never_refused(
    running: Running, make_request: Make
) -> None:
    async with running("fake:step_s=0.002") as client:
        for n in range(3):
            innocent = asyncio.create_task(answer(client, make_request(f"i{n}", max_tokens=5000)))
            while not (client.stats and client.stats.running):
                await asyncio.sleep(0.001)
            with pytest.raises(WorkerDiedError):
                await answer(client, make_request(f"bad{n}", ids=(fake.EXIT_ID, 5)))
            with pytest.raises(WorkerDiedError):
                await innocent
            await client.wait_ready(30)
        assert await answer(client, make_request("good", max_tokens=4)) == 4


def dead(suspects: Suspects, request: Request, times: int, cause: Cause = "failed") -> bytes:
    digest = suspects.digest(request)
    for _ in range(times):
        suspects.blame({digest}, cause)
    return digest


def test_an_hour_later_and_after_an_answer_it_is_tried_again() -> None:
    now_s = 0.0
    suspects = Suspects(lambda: now_s)
    digest = dead(suspects, Request("a", (1, 2)), 2)
    with pytest.raises(PromptRefusedError):
        suspects.check(digest)
    now_s = REFUSED_S
    suspects.check(digest)
    dead(suspects, Request("a", (1, 2)), 1)
    suspects.check(digest)
    suspects.acquit(digest)
    dead(suspects, Request("b", (1, 2)), 1)
    suspects.check(digest)


@pytest.mark.parametrize("cause", ["killed", "stopped", "load"])
def test_what_a_prompt_cannot_cause_is_not_blamed_on_it(cause: Cause) -> None:
    suspects = Suspects()
    suspects.check(dead(suspects, Request("a", (1,)), 5, cause))


def test_the_digest_is_of_what_is_computed_and_of_this_process_only() -> None:
    suspects = Suspects()
    same = [Request("a", (1, 2)), Request("b", (1, 2), sampling=Sampling(seed=3, max_tokens=1))]
    others = [Request("a", (1, 3)), Request("a", (1, 2), policy="look-m@0.2")]
    assert len({suspects.digest(request) for request in same}) == 1
    assert len({suspects.digest(request) for request in same + others}) == 3
    assert Suspects().digest(same[0]) != suspects.digest(same[0])


def test_suspects_are_bounded_in_number() -> None:
    suspects = Suspects()
    first = dead(suspects, Request("a", (0,)), 2)
    for n in range(1, MAX_SUSPECTS + 1):
        dead(suspects, Request("a", (n,)), 1)
    suspects.check(first)
    assert len(suspects._records) == MAX_SUSPECTS
