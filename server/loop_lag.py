"""How late the event loop is: what every client feels when one of them costs too much."""

import asyncio
from collections.abc import Callable

LOOK_EVERY_S = 0.1


async def watch_lag(observe: Callable[[float], None]) -> None:
    """Tell `observe` how late this task is woken, in seconds, until it is cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due_s = loop.time() + LOOK_EVERY_S
        await asyncio.sleep(LOOK_EVERY_S)
        observe(max(0.0, loop.time() - due_s))
