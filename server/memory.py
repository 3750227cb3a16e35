"""Memory of this process and this machine: what is held, what is left, what goes back.

glibc keeps what large requests freed; here it is given back to the system, in a thread, for as long
as the process is larger than it was at start. That takes milliseconds.
"""

import asyncio
import ctypes
import resource
from pathlib import Path

GIVE_BACK_EVERY_S = 10.0
GROWTH_BYTES = 32 * 2**20
CGROUP = Path("/sys/fs/cgroup")


def resident_bytes() -> int:
    """What this process has of the machine's memory; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def used_ratio() -> float:
    """How much of its memory the machine, or the container, has used, 0 to 1.

    Files that the kernel could drop do not count.
    """
    machine = _numbers(Path("/proc/meminfo"))
    total, available = machine.get("MemTotal:", 0), machine.get("MemAvailable:", 0)
    ratio = 1 - available / total if total else 0.0
    try:
        limit = int((CGROUP / "memory.max").read_text())  # "max" where there is none
        used = int((CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return ratio
    droppable = _numbers(CGROUP / "memory.stat").get("inactive_file", 0)
    return max(ratio, (used - droppable) / limit)


async def give_back_memory() -> None:
    """Do so again and again, until cancelled. Returns at once where the C library is another."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return
    at_start_bytes = resident_bytes()
    while True:
        await asyncio.sleep(GIVE_BACK_EVERY_S)
        if resident_bytes() > at_start_bytes + GROWTH_BYTES:
            await asyncio.to_thread(trim, 0)


def _numbers(path: Path) -> dict[str, int]:
    """The first number of each line, by its name; none where the system has no such file."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    return {line.split()[0]: int(line.split()[1]) for line in lines}
