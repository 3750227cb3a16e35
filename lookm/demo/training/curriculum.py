"""How many pictures a conversation may have: more, once fewer are mastered.

Knows accuracies per task and number of pictures. Knows nothing of tensors. It moves on accuracy;
the clock only steps in when otherwise too little time would be left for long conversations.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

STAGES: Final = (2, 4, 8, 12, 16)
CORE: Final = ("what", "describe", "colour", "shape", "where", "colour of", "list colours")
_MASTERY: Final = 0.85
_LATEST: Final = (0.15, 0.3, 0.45, 0.6)  # share of the time after which a stage ends regardless
_MEMORY: Final = 0.98


@dataclass(slots=True)
class Curriculum:
    """The stage reached, and a running exact-match accuracy per (task, pictures at most)."""

    stage: int = 0
    right: dict[str, float] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)

    @property
    def max_images(self) -> int:
        """The most pictures a conversation has now."""
        return STAGES[self.stage]

    def draw_num_images(self, rng: random.Random) -> int:
        """Many few, many near the most allowed, now and then no picture at all."""
        fate = rng.random()
        if fate < 0.02:
            return 0
        if fate < 0.12:
            return self.max_images
        if fate < 0.4:
            return rng.randint(1, min(3, self.max_images))
        low = 1 if fate < 0.7 else max(1, self.max_images // 2)
        return rng.randint(low, self.max_images)

    def record(self, num_images: int, tasks: Iterable[str], right: Iterable[bool]) -> None:
        """Remember how a batch went."""
        bucket = next((stage for stage in STAGES if num_images <= stage), STAGES[-1])
        for task, one in zip(tasks, right, strict=True):
            key = f"{bucket}/{task}"
            seen = self.seen.get(key, 0)
            memory = min(_MEMORY, seen / (seen + 1))
            self.right[key] = self.right.get(key, 0.0) * memory + (1 - memory) * one
            self.seen[key] = seen + 1

    def advance(self, share_done: float) -> bool:
        """Move to the next stage if this one is mastered (or overdue); True if it moved."""
        if self.stage + 1 == len(STAGES):
            return False
        keys = [f"{self.max_images}/{task}" for task in CORE]
        known = all(self.seen.get(key, 0) >= 100 for key in keys)
        score = sum(self.right.get(key, 0.0) for key in keys) / len(keys)
        if (known and score >= _MASTERY) or share_done >= _LATEST[self.stage]:
            self.stage += 1
            return True
        return False

    def summary(self) -> dict[str, dict[str, float]]:
        """Accuracy per bucket and task, for the log."""
        table: dict[str, dict[str, float]] = {}
        for key, value in sorted(self.right.items()):
            bucket, task = key.split("/", 1)
            table.setdefault(bucket, {})[task] = round(value, 2)
        return table
