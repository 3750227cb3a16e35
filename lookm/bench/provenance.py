"""Where a number comes from: the command, the commit, the machine, the versions.

Knows nothing that names a person, a host or a folder.
"""

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CODE = ("lookm", "server", ":(exclude)server/bench/results")  # runs are not code
PACKAGES = ("torch", "transformers", "numpy", "httpx")


def provenance(command: str) -> dict[str, Any]:
    """What every saved run begins with. `command` is what a reader types to run it again."""
    return {
        "command": command,
        "commit": commit(),
        "hardware": hardware(),
        "versions": versions(),
        "measured_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def commit() -> str:
    """The short commit of the code, with `-changed` where tracked code differs from it."""
    head = _git("rev-parse", "--short=7", "HEAD")
    if not head:
        return "unknown"
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", *CODE)
    return f"{head}-changed" if changed else head


def hardware() -> str:
    """`2 cores of Intel(R) Xeon(R) Processor, 23 GiB`."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{os.cpu_count()} cores of {name}, {memory_bytes / 2**30:.0f} GiB"


def versions() -> dict[str, str]:
    """Of Python and of what decides speed; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], check=False, cwd=ROOT, capture_output=True, text=True
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
