"""An allowance for each minute, that fills up again evenly: a token bucket.

Who has used nothing for a minute may use it all at once; from then on a 60th of it comes each
second. Knows numbers and a clock.
"""

import math
import time
from collections.abc import Callable

MINUTE_S = 60.0
NEARLY = 1e-6  # what rounding takes from a sum of many small amounts

Clock = Callable[[], float]


class Bucket:
    """`per_minute` of something, all of it there at first. It may be overdrawn."""

    def __init__(self, per_minute: int, clock: Clock = time.monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._left = float(per_minute)
        self._at_s = clock()

    @property
    def left(self) -> float:
        """What may be used now; below zero where more was used than there was."""
        now_s = self._clock()
        gained = (now_s - self._at_s) * self.per_minute / MINUTE_S
        self._left = min(float(self.per_minute), self._left + gained)
        self._at_s = now_s
        return self._left

    def has(self, amount: float) -> bool:
        """Whether so much may be used now."""
        return self.left + NEARLY >= amount

    def take(self, amount: float) -> None:
        """Use so much, whether it is there or not; less than nothing gives it back."""
        self._left = min(float(self.per_minute), self.left - amount)

    def wait_s(self, amount: float) -> float:
        """Seconds until so much is there, if nobody uses any; infinite where it never is."""
        if amount > self.per_minute:
            return math.inf
        return max(0.0, amount - self.left - NEARLY) * MINUTE_S / self.per_minute

    def full_in_s(self) -> float:
        """Seconds until all of it is there."""
        return self.wait_s(self.per_minute)

    def resize(self, per_minute: int) -> None:
        """From now on so much a minute. What is left stays, as far as it fits."""
        left = self.left
        self.per_minute = per_minute
        self._left = min(left, float(per_minute))
