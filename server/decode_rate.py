"""Tokens decoded a second, as clients feel it and over the last seconds. Pure arithmetic."""

import math
from collections import deque

from lookm.types import EngineStats

RATE_WINDOW_S = 10.0


class DecodeClock:
    """Time in which tokens were decoded, as a client feels it.

    From the arrival of one step to that of the next, where the next decoded: what lies between two
    steps (messages, scheduling) counts. `EngineStats.decode_s` is only the steps' own time, so
    tokens over it are more a second than any client sees: by 7 to 16 % with the demo model.
    """

    def __init__(self) -> None:
        self.decoding_s = 0.0
        self._stepped_s = math.inf
        self._decoded_tokens = 0

    def step(self, now_s: float, stats: EngineStats) -> None:
        """A step has arrived."""
        if stats.decode_tokens_total > self._decoded_tokens:
            self.decoding_s += max(0.0, now_s - self._stepped_s)
        self._stepped_s, self._decoded_tokens = now_s, stats.decode_tokens_total


class DecodeRate:
    """Decode throughput over the last `RATE_WINDOW_S`, from samples of two growing totals.

    Tokens per second *of decoding*: time in which nothing was decoded does not count, except that
    after a whole window of it the rate is zero.
    """

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int, float]] = deque()

    @property
    def sampled_s(self) -> float:
        """When the last sample was taken."""
        return self._samples[-1][0] if self._samples else -math.inf

    def sample(self, now_s: float, totals: EngineStats) -> None:
        """Remember the totals of this moment, forget those before the window."""
        self._samples.append((now_s, totals.decode_tokens_total, totals.decode_s))
        while self._samples[0][0] < now_s - RATE_WINDOW_S:
            self._samples.popleft()

    def tokens_per_s(self) -> float:
        """Between the oldest and the newest sample."""
        (_, tokens_before, s_before), (_, tokens, s) = self._samples[0], self._samples[-1]
        return (tokens - tokens_before) / (s - s_before) if s > s_before else 0.0
