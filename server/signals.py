"""SIGINT, SIGTERM, SIGHUP, SIGQUIT, from the first instruction to the last: each asks us to stop,
but that a hangup has files read again where there are some.

SIGUSR1 and SIGUSR2, which supervisors send to have logs opened anew, mean nothing here: they are
ignored, where they would end the process at once with everybody's answers.

Handlers that outlive the event loop, whose own ones end with it: a signal that comes late must not
end the process with the signal's status. Imports nothing that takes time, knows nothing of servers.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
IGNORED = (signal.SIGUSR1, signal.SIGUSR2)


@contextlib.contextmanager
def handled(
    stop: Callable[[], object], reread: Callable[[], object] | None = None
) -> Iterator[None]:
    """Call `stop`, in the main thread and at any moment, for each of the signals that mean it.

    A hangup that is ignored stays so: `nohup` asks for that. Where there is something to `reread`,
    a hangup asks for that instead.
    """
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    numbers = [each for each in STOPPING if each != signal.SIGHUP or not ignored]
    before = {number: signal.signal(number, lambda *_: stop()) for number in numbers}
    if reread is not None:
        again = reread
        hangup = signal.signal(signal.SIGHUP, lambda *_: again())
        before.setdefault(signal.SIGHUP, hangup)
    before |= {number: signal.signal(number, signal.SIG_IGN) for number in IGNORED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_at_once() -> None:
    """While nothing is open yet, or no longer: status 0, and nobody is waited for."""
    os._exit(0)
