"""When to start the next worker after one died. Pure arithmetic; the clock is the caller's."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Back-off between workers.

    A worker that died before it had served for `healthy_s` failed fast. The n-th fast failure in a
    row is followed by a pause of `first_delay_s * 2^(n-1)`, at most `max_delay_s`; after
    `max_fast_failures` in a row there is no next worker. One that had been healthy starts the count
    again.
    """

    max_fast_failures: int = 5
    first_delay_s: float = 0.5
    max_delay_s: float = 30.0
    healthy_s: float = 60.0

    def count(self, fast_failures: int, served_s: float) -> int:
        """Fast failures in a row, now that a worker died after serving for `served_s`."""
        return 1 if served_s >= self.healthy_s else fast_failures + 1

    def delay_s(self, fast_failures: int) -> float | None:
        """Seconds until the next worker, or None to give up."""
        if fast_failures >= self.max_fast_failures:
            return None
        return float(min(self.max_delay_s, self.first_delay_s * 2 ** (fast_failures - 1)))
