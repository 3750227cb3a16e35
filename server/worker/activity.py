"""Whether a process does anything, as the operating system sees it (Linux; elsewhere: perhaps).

A machine under load, or one that swaps, makes a process slow, but not idle: it wants the processor
or waits for a disk. Tells apart what is slow and what hangs. Knows `/proc`, nothing of workers.
"""

import contextlib
import os
from pathlib import Path

WORKING = {"R", "D"}  # runs or wants to; waits for a disk, as one that is swapped in does
MIN_TICKS = 2  # more than a heartbeat takes, in half a second


class Activity:
    """Asked again and again: whether the process, or a child, has done anything meanwhile.

    `busy_s` sums what its busiest thread of the time took of a processor: where others leave it
    less of one, its work takes longer, but not more of this. 0 where that cannot be known.
    """

    def __init__(self, pid: int) -> None:
        self.busy_s = 0.0
        self._folder = Path(f"/proc/{pid}")
        self._ticks: dict[str, int] = {}  # of each thread
        self._known = hasattr(os, "sched_getaffinity") and self._folder.exists()

    def seen(self) -> bool:
        """True where that cannot be known."""
        if not self._known:
            return True
        before, self._ticks = self._ticks, {}
        states: set[str] = set()
        with contextlib.suppress(OSError):
            for thread in (self._folder / "task").iterdir():
                with contextlib.suppress(OSError):  # a thread that has just ended
                    state, ticks = _state_and_ticks(thread)
                    states.add(state)
                    self._ticks[thread.name] = ticks
                    for child in (thread / "children").read_text().split():  # a compiler's
                        states.add(_state_and_ticks(Path("/proc", child))[0])
        if before:
            taken = (self._ticks[each] - before.get(each, 0) for each in self._ticks)
            self.busy_s += max(taken, default=0) / os.sysconf("SC_CLK_TCK")
        num_ticks = sum(self._ticks.values()) - sum(before.values())
        return bool(states & WORKING) or num_ticks >= MIN_TICKS


def _state_and_ticks(process: Path) -> tuple[str, int]:
    """Fields 3, 14 and 15 of proc(5)'s `stat`; the name before them may hold anything."""
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    return fields[0], int(fields[11]) + int(fields[12])
