"""Elastic budgets: the range of one request, and what it may keep at each level of it.

    level   0 ................................ LEVELS
    keep    the least that it asked for        the most

Which level is taken is decided once, when the request starts (`lookm.room`), and stays: through a
preemption, and for all choices of one request. Knows policies and rows; knows nobody else.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from lookm.policy import Recipe, most

Int64 = npt.NDArray[np.int64]

LEVELS = 16


class Elastic:
    """What a request asked for, and the rows that it has at each level.

    `bound` says how many rows each layer keeps at most under a recipe; `fits` whether a prompt of
    so many could be answered if the pool held nobody else. At level 0 it does.
    """

    def __init__(
        self, asked: Recipe, bound: Callable[[Recipe], Int64], fits: Callable[[Int64], bool]
    ) -> None:
        self.asked = asked
        self.level = 0
        self.settled = False  # whether that was decided
        self._bound = bound
        self._fits = fits
        self._known: dict[int, tuple[Recipe, Int64]] = {}
        self._most: int | None = None

    def at(self, level: int) -> tuple[Recipe, Int64]:
        """The recipe at a level, and the rows of each layer."""
        if level not in self._known:
            policy = replace(most(self.asked.policy), keep=self._keep(level))
            recipe = Recipe(policy, self.asked.preset)
            self._known[level] = recipe, self._bound(recipe)
        return self._known[level]

    def rows(self, level: int) -> Int64:
        """The rows of each layer at a level, or at the highest that it can ever have."""
        return self.at(min(level, self.most))[1]

    @property
    def most(self) -> int:
        """The highest level at which an empty pool could answer it."""
        if self._most is None:
            self._most = highest(lambda level: self._fits(self.at(level)[1]), LEVELS)
        return self._most

    def _keep(self, level: int) -> float:
        """The fraction at a level, between the two that were asked for; 4 digits where those do."""
        low, high = self.asked.policy.keep_min, self.asked.policy.keep
        assert low is not None, "an elastic policy has a least"
        assert high is not None, "and a most"
        if level in (0, LEVELS):
            return high if level else low
        return min(max(low, round(low + (high - low) * level / LEVELS, 4)), high)


def opened(
    asked: Recipe, bound: Callable[[Recipe], Int64], fits: Callable[[Int64], bool]
) -> tuple[Recipe, Int64, Elastic | None]:
    """A request's recipe before it starts, at its lowest level where it has any, and its rows."""
    if asked.policy.keep_min is None:
        return asked, bound(asked), None
    elastic = Elastic(asked, bound, fits)
    return *elastic.at(0), elastic


def highest(holds: Callable[[int], bool], most: int) -> int:
    """The highest level up to `most` that holds, where those below it do; 0 is not asked."""
    return bisect_left(range(1, most + 1), True, key=lambda level: not holds(level))
