"""Starts one worker process and tells when it ends. Knows nothing about what is said to it."""

import asyncio
import contextlib
import os
import sys
from asyncio.subprocess import PIPE, Process
from typing import Self

#: Memory in huge pages, and kept from step to step: 5 to 10 % less time on a CPU.
HEAP = {
    "glibc.malloc.hugetlb": 1,
    "glibc.malloc.mmap_threshold": 1 << 30,
    "glibc.malloc.trim_threshold": 1 << 32,
}


def worker_environment() -> dict[str, str]:
    """Ours, and what must be set before a process starts. What the operator has set stays."""
    tunables = [each for each in os.environ.get("GLIBC_TUNABLES", "").split(":") if each]
    decided = {each.partition("=")[0] for each in tunables}
    tunables += [f"{name}={value}" for name, value in HEAP.items() if name not in decided]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "GLIBC_TUNABLES": ":".join(tunables),
    }


class WorkerProcess:
    """A running `server.worker.process`. Its standard input is open for as long as we live.

    It gets a process group of its own: Ctrl-C in a terminal reaches the API process only, which
    drains and then tells the worker.
    """

    def __init__(self, process: Process) -> None:
        self._process = process

    @classmethod
    async def spawn(cls, address: str) -> Self:
        """Start the worker of the channel at `address`; it imports from where we import."""
        command = (sys.executable, "-m", "server.worker.process", address)
        process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, env=worker_environment(), process_group=0
        )
        return cls(process)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    async def wait(self) -> int:
        """Return the exit status (negative: the signal) the moment the process has ended."""
        return await self._process.wait()

    async def kill(self) -> None:
        """End it now if it has not ended, and leave no zombie."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                await self._process.stdin.wait_closed()
