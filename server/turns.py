"""Who is next: a bounded number of places, shared fairly between API keys and between requests.

The next place goes to the key that has used the least time, and of that key's requests to the one
that has; who arrives begins where those who wait are, so that nobody waits behind all that another
has asked for. Whose place it is, is known from the context (`owned_by`), which every task of a
request shares. One event loop; knows nothing about what the places are for.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

UNBOUNDED = 2**31  # places, where there is no bound any more


@dataclass(frozen=True, slots=True, eq=False)
class Owner:
    """One request, and the (digest of the) API key it came with."""

    key: str = ""


_OWNER: ContextVar[Owner] = ContextVar("owner")


@contextlib.contextmanager
def owned_by(key: str) -> Iterator[None]:
    """What happens inside is for one request that came with this key."""
    token = _OWNER.set(Owner(key))
    try:
        yield
    finally:
        _OWNER.reset(token)


def current_owner() -> Owner:
    """The request that the running task works for; outside of any, one of its own."""
    return _OWNER.get(None) or Owner()


@dataclass(slots=True, eq=False)
class _Account:
    """The time that a key, or one of its requests, has used; what runs now counts as it runs."""

    key: "_Account | None" = None
    used_s: float = 0.0
    running: int = 0
    begun_s: float = 0.0  # summed over what runs
    waiting: deque[asyncio.Future[float]] = field(default_factory=deque)

    def total_s(self, now_s: float) -> float:
        """Used up to now."""
        return self.used_s + self.running * now_s - self.begun_s

    def begin(self, now_s: float) -> None:
        """One more runs."""
        self.running += 1
        self.begun_s += now_s

    def end(self, begun_s: float, now_s: float) -> None:
        """What began at `begun_s` is over."""
        self.running -= 1
        self.begun_s -= begun_s
        self.used_s += now_s - begun_s

    @property
    def idle(self) -> bool:
        """Whether it may be forgotten."""
        return not self.running and not self.waiting


class Turns:
    """`places` for all together; the first `each` of every request do not count among them."""

    def __init__(self, places: int, each: int = 0) -> None:
        self._places = places
        self._each = each
        self._taken = 0
        self._owners: dict[Owner, _Account] = {}
        self._keys: dict[str, _Account] = {}

    @property
    def num_waiting(self) -> int:
        """How many wait for a place."""
        return sum(len(each.waiting) for each in self._owners.values())

    def has_place(self) -> bool:
        """Whether the running task's request would not wait now."""
        owner = current_owner()
        free = self._free_for(self._account(owner))
        self._forget(owner)
        return free

    def resize(self, places: int) -> None:
        """From now on so many places; who waits for one that there is now gets it."""
        self._places = places
        self._let_in(asyncio.get_running_loop().time())

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a place, and hold it."""
        owner = current_owner()
        account = self._account(owner)
        begun_s = self._begin(account) if self._free_for(account) else await self._wait(owner)
        try:
            yield
        finally:
            self._end(owner, begun_s)

    async def _wait(self, owner: Owner) -> float:
        account = self._owners[owner]
        place: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        account.waiting.append(place)
        try:
            return await place
        except asyncio.CancelledError:
            if place.cancelled():
                with contextlib.suppress(ValueError):  # it was passed over already
                    account.waiting.remove(place)
                self._forget(owner)
            else:  # it was given at the same moment
                self._end(owner, place.result())
            raise

    def _account(self, owner: Owner) -> _Account:
        """The owner's account; a new one begins at what the least of the others has used."""
        now_s = asyncio.get_running_loop().time()
        if owner.key not in self._keys:
            self._keys[owner.key] = _Account(used_s=_least(self._keys.values(), now_s))
        if owner not in self._owners:
            key = self._keys[owner.key]
            others = [each for each in self._owners.values() if each.key is key]
            self._owners[owner] = _Account(key, _least(others, now_s))
        return self._owners[owner]

    def _free_for(self, account: _Account) -> bool:
        return account.running < self._each or self._taken < self._places

    def _begin(self, account: _Account) -> float:
        now_s = asyncio.get_running_loop().time()
        self._taken += account.running >= self._each
        for each in (account, account.key):
            assert each is not None
            each.begin(now_s)
        return now_s

    def _end(self, owner: Owner, begun_s: float) -> None:
        account = self._owners[owner]
        now_s = asyncio.get_running_loop().time()
        for each in (account, account.key):
            assert each is not None
            each.end(begun_s, now_s)
        self._taken -= account.running >= self._each
        self._let_in(now_s)
        self._forget(owner)

    def _let_in(self, now_s: float) -> None:
        while (following := self._next(now_s)) is not None:
            place = following.waiting.popleft()
            if not place.cancelled():
                place.set_result(self._begin(following))

    def _next(self, now_s: float) -> _Account | None:
        """Whose turn it is, if there is a place."""
        waiting = [a for a in self._owners.values() if a.waiting and self._free_for(a)]
        return min(waiting, key=lambda a: (_key_s(a, now_s), a.total_s(now_s)), default=None)

    def _forget(self, owner: Owner) -> None:
        """Keep no account of who has gone."""
        account = self._owners.get(owner)
        if account is not None and account.idle:
            del self._owners[owner]
            assert account.key is not None
            if not any(each.key is account.key for each in self._owners.values()):
                del self._keys[owner.key]


class KeyTurns:
    """As many places for each API key as `places_of` says, or no bound (None; or without a key)."""

    def __init__(self, places_of: Callable[[str], int | None]) -> None:
        self._places_of = places_of
        self._turns: dict[str, Turns] = {}  # of keys that are accepted: those are few

    @property
    def num_waiting(self) -> int:
        """How many wait, of all keys."""
        return sum(turns.num_waiting for turns in self._turns.values())

    def current(self) -> Turns | None:
        """Those of the key that the running task's request came with."""
        key = current_owner().key
        places = self._places_of(key) if key else None
        if places is None:
            return None
        if key not in self._turns:
            self._turns[key] = Turns(places)
        return self._turns[key]

    def refresh(self) -> None:
        """The bounds have changed: who may go on now does."""
        for key, turns in self._turns.items():
            turns.resize(self._places_of(key) or UNBOUNDED)


def _key_s(account: _Account, now_s: float) -> float:
    assert account.key is not None
    return account.key.total_s(now_s)


def _least(accounts: Iterable[_Account], now_s: float) -> float:
    return min((account.total_s(now_s) for account in accounts), default=0.0)
