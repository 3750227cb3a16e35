"""When to start the next worker after one died. Arithmetic; the clock is `time.monotonic`."""

import time
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Back-off between workers.

    A worker that died before it had served for `healthy_s` failed fast. The n-th fast failure in a
    row is followed by a pause of `first_delay_s * 2^(n-1)`, at most `max_delay_s`; one that had
    been healthy starts the count again. While no worker has ever been ready, `max_start_failures`
    in a row are the end: what never worked is not mended by waiting. A model that has been served
    is tried again for as long as the server runs; not at all where another starts the server again
    (`never`).
    """

    max_start_failures: int = 5
    first_delay_s: float = 0.5
    max_delay_s: float = 60.0
    healthy_s: float = 60.0
    never: bool = False

    def count(self, fast_failures: int, served_s: float) -> int:
        """Fast failures in a row, now that a worker died after serving for `served_s`."""
        return 1 if served_s >= self.healthy_s else fast_failures + 1

    def gives_up(self, fast_failures: int, *, ever_ready: bool) -> bool:
        """Whether there is no next worker."""
        return self.never or (not ever_ready and fast_failures >= self.max_start_failures)

    def delay_s(self, fast_failures: int) -> float:
        """Seconds until the next worker."""
        doublings = min(fast_failures - 1, 64)  # beyond, a float would overflow
        return float(min(self.max_delay_s, self.first_delay_s * 2**doublings))


@dataclass(slots=True)
class Restarts:
    """How often workers failed in a row, and when the next one is tried."""

    policy: RestartPolicy = field(default_factory=RestartPolicy)
    fast_failures: int = 0
    next_start_s: float = 0.0

    def count(self, ready_at_s: float | None) -> None:
        """A worker has died that had been ready since `ready_at_s`, or never."""
        served_s = 0.0 if ready_at_s is None else time.monotonic() - ready_at_s
        self.fast_failures = self.policy.count(self.fast_failures, served_s)

    def plan_next(self) -> float:
        """Seconds until the next worker."""
        delay_s = self.policy.delay_s(self.fast_failures)
        self.next_start_s = time.monotonic() + delay_s
        return delay_s

    @property
    def wait_s(self) -> float:
        """Seconds until the next worker is started, from now."""
        return max(0.0, self.next_start_s - time.monotonic())

    @property
    def condition(self) -> str:
        """A sentence for clients."""
        failures, wait_s = self.fast_failures, self.wait_s
        often = f"failed {failures} times in a row" if failures > 1 else "failed"
        again = f"is started again in {wait_s:.0f} s" if wait_s >= 1 else "is being started again"
        return f"The engine {often} and {again}. The server's log says why."
