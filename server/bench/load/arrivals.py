"""When requests are sent: an open loop of Poisson arrivals, or a fixed number of clients.

In an open loop, users do not wait for each other: a request is due at its time whether or not the
server keeps up, and its latency counts from then. That is the load that real users make, and it
avoids coordinated omission (a slow server that slows down its own measurement). A fixed number of
clients sends the next request when the last is answered: right for throughput, blind to queues.
Knows clocks; knows nothing about requests.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Schedule:
    """Either `rate_per_s` (open loop) or `concurrency` (fixed clients) is set.

    It ends after `num_requests`, or when no more are sent after `duration_s`, whichever is first;
    requests under way are awaited. At least one of the two is set.
    """

    rate_per_s: float | None = None
    concurrency: int | None = None
    num_requests: int | None = None
    duration_s: float | None = None

    def __post_init__(self) -> None:
        if (self.rate_per_s is None) == (self.concurrency is None):
            raise ValueError("give either a rate (open loop) or a concurrency (fixed clients)")
        if self.num_requests is None and self.duration_s is None:
            raise ValueError("give a number of requests, a duration, or both")
        given = (self.rate_per_s, self.concurrency, self.num_requests, self.duration_s)
        if any(value is not None and value <= 0 for value in given):
            raise ValueError("rate, concurrency, requests and duration are above 0")

    def described(self) -> dict[str, Any]:
        """For reports: only what is set."""
        fields = {
            "rate_per_s": self.rate_per_s,
            "concurrency": self.concurrency,
            "requests": self.num_requests,
            "duration_s": self.duration_s,
        }
        return {name: value for name, value in fields.items() if value is not None}


def poisson(schedule: Schedule, seed: int) -> Iterator[float]:
    """Seconds from the start at which requests are due: gaps are exponential, mean 1 / rate."""
    assert schedule.rate_per_s is not None
    rng = np.random.default_rng((seed, 2))
    due_s, sent = 0.0, 0
    while schedule.num_requests is None or sent < schedule.num_requests:
        due_s += float(rng.exponential(1 / schedule.rate_per_s))
        if schedule.duration_s is not None and due_s >= schedule.duration_s:
            return
        yield due_s
        sent += 1
