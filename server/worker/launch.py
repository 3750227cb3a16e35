"""Starts one worker process and tells when it ends. Knows nothing about what is said to it."""

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import Self

from server.worker.heartbeat import Heart
from server.worker.worker_errors import Cause, WorkerDiedError

#: Memory in huge pages, and kept from step to step: 5 to 10 % less time on a CPU.
HEAP = {
    "glibc.malloc.hugetlb": 1,
    "glibc.malloc.mmap_threshold": 1 << 30,
    "glibc.malloc.trim_threshold": 1 << 32,
}


#: What no fault of a program raises.
SENT_BY_SOMEBODY = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}


def _num_out_of_memory() -> int:
    """Processes that the kernel has ended for want of memory, since it started; 0 if unknown."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


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

    def __init__(self, process: Process, heart: Heart) -> None:
        self._process = process
        self.heart = heart
        self._num_out_of_memory = _num_out_of_memory()

    @classmethod
    async def spawn(cls, address: str) -> Self:
        """Start the worker of the channel at `address`; it imports from where we import."""
        heart = Heart()
        pipe = str(heart.pipe)
        command = (sys.executable, "-m", "server.worker.process", address, pipe)
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=PIPE,
                env=worker_environment(),
                process_group=0,
                pass_fds=(heart.pipe,),
            )
        except BaseException:
            heart.close()
            raise
        heart.listen()
        return cls(process, heart)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    async def wait_failed(self) -> WorkerDiedError:
        """Return, with why, the moment the process has ended."""
        status = await self._process.wait()
        return WorkerDiedError(f"it ended with status {status}", cause=self._cause(status))

    def _cause(self, status: int) -> Cause:
        """A status of -n is signal n. Who sent SIGKILL, the kernel counts."""
        if status == -signal.SIGKILL and _num_out_of_memory() > self._num_out_of_memory:
            return "out_of_memory"
        return "killed" if -status in SENT_BY_SOMEBODY else "crashed"

    async def kill(self) -> None:
        """End it now if it has not ended, and leave no zombie."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        self.heart.close()
        if self._process.stdin is not None:
            self._process.stdin.close()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                await self._process.stdin.wait_closed()
