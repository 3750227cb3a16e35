"""When to start the next worker after one died. Pure arithmetic; the clock is the caller's."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Back-off between workers.

    A worker that died before it had served for `healthy_s` failed fast. The n-th fast failure in a
    row is followed by a pause of `first_delay_s * 2^(n-1)`, at most `max_delay_s`; one that had
    been healthy starts the count again. While no worker has ever been ready, `max_start_failures`
    in a row are the end: what never worked is not mended by waiting. A model that has been served
    is tried again for as long as the server runs.
    """

    max_start_failures: int = 5
    first_delay_s: float = 0.5
    max_delay_s: float = 60.0
    healthy_s: float = 60.0

    def count(self, fast_failures: int, served_s: float) -> int:
        """Fast failures in a row, now that a worker died after serving for `served_s`."""
        return 1 if served_s >= self.healthy_s else fast_failures + 1

    def gives_up(self, fast_failures: int, *, ever_ready: bool) -> bool:
        """Whether there is no next worker."""
        return not ever_ready and fast_failures >= self.max_start_failures

    def delay_s(self, fast_failures: int) -> float:
        """Seconds until the next worker."""
        doublings = min(fast_failures - 1, 64)  # beyond, a float would overflow
        return float(min(self.max_delay_s, self.first_delay_s * 2**doublings))
