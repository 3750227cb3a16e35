"""The longest engine step of the last minute: no stream waited longer for its next token.

Knows the clock it is given; nothing about metrics.
"""

from collections import deque

WINDOW_S = 60.0


class LongestStep:
    """The largest of what was added in the last `WINDOW_S`."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, float]] = deque()  # each longer than all later ones

    def add(self, now_s: float, step_s: float) -> None:
        """A step has ended."""
        while self._steps and self._steps[-1][1] <= step_s:
            self._steps.pop()
        self._steps.append((now_s, step_s))
        self.seconds(now_s)

    def seconds(self, now_s: float) -> float:
        """Of the window that ends now; 0 without any step."""
        while self._steps and self._steps[0][0] < now_s - WINDOW_S:
            self._steps.popleft()
        return self._steps[0][1] if self._steps else 0.0
