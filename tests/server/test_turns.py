"""Places are shared by time used: between keys, between the requests of each, then by arrival."""

import asyncio
from collections.abc import Callable

import pytest

from server.turns import Owner, Turns, current_owner, owned_by

pytestmark = pytest.mark.anyio


class Work:
    """Tasks that take turns one after the other, and in which order they got one."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.order: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.go = asyncio.Event()

    def ask(self, name: str, key: str = "", times: int = 1) -> None:
        """`times` turns of one request, all asked for at once."""
        with owned_by(key):
            self.tasks += [asyncio.create_task(self._once(name)) for _ in range(times)]

    async def _once(self, name: str) -> None:
        async with self._turns.turn():
            self.order.append(name)
            await self.go.wait()
            await asyncio.sleep(0.002)

    async def finish(self) -> None:
        self.go.set()
        await asyncio.gather(*self.tasks)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_newcomer_is_next_whatever_others_have_asked_for() -> None:
    work = Work(Turns(1))
    work.ask("greedy", times=20)
    await settle()
    work.ask("newcomer")
    await settle()
    await work.finish()
    assert work.order.index("newcomer") <= 2
    assert len(work.order) == 21


async def test_many_requests_of_one_key_take_turns_with_one_of_another() -> None:
    work = Work(Turns(1))
    for n in range(8):
        work.ask(f"a{n}", key="a", times=4)
    await settle()
    work.ask("b", key="b", times=4)
    await settle()
    await work.finish()
    places = [n for n, name in enumerate(work.order) if name == "b"]
    assert places[-1] <= 12, work.order


async def test_no_more_hold_a_place_than_there_are_and_each_has_one_of_its_own() -> None:
    for places, each, held in ((2, 0, 2), (2, 1, 4), (0, 1, 2)):
        work = Work(Turns(places, each))
        work.ask("a", times=5)
        work.ask("b", times=5)
        await settle()
        assert len(work.order) == held
        assert {"a", "b"} <= set(work.order) or not each
        await work.finish()
        assert len(work.order) == 10


@pytest.mark.parametrize("leave", [lambda work: work.tasks[1].cancel(), lambda work: None])
async def test_who_leaves_while_waiting_takes_nothing_along(
    leave: Callable[[Work], object],
) -> None:
    turns = Turns(1)
    work = Work(turns)
    work.ask("a", times=3)
    await settle()
    leave(work)
    work.go.set()
    await asyncio.gather(*work.tasks, return_exceptions=True)
    async with asyncio.timeout(5), turns.turn():
        pass
    assert not turns._owners
    assert not turns._keys
    assert turns._taken == 0


async def test_who_leaves_at_the_moment_of_its_turn_passes_it_on() -> None:
    turns = Turns(1)
    work = Work(turns)
    work.ask("a", times=3)
    await settle()
    work.go.set()
    await work.tasks[0]
    work.tasks[1].cancel()
    await asyncio.gather(*work.tasks, return_exceptions=True)
    assert turns._taken == 0
    assert not turns._owners


async def test_the_tasks_of_a_request_have_its_owner_and_others_have_their_own() -> None:
    async def owner() -> Owner:
        return current_owner()

    with owned_by("k"):
        mine = current_owner()
        assert await asyncio.create_task(owner()) is mine
        assert mine.key == "k"
    assert current_owner() is not current_owner()
