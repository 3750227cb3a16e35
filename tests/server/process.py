"""A real server process, started as users start it."""

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai

READY = re.compile(r"is ready: (http://\S+)")


@contextlib.contextmanager
def serving_process(*flags: str) -> "Iterator[ServerProcess]":
    """`lookm serve` with these flags, once it is ready."""
    server = ServerProcess(*flags)
    try:
        server.wait_ready()
        yield server
    finally:
        server.close()


class ServerProcess:
    """`lookm serve` on a free port. `banner` is what it printed until it was ready."""

    def __init__(self, *flags: str) -> None:
        command = (sys.executable, "-m", "server", "serve", "--port", "0", *flags)
        self.process = subprocess.Popen(
            command,
            env=dict(os.environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.banner = ""
        self.url = ""
        self._log = threading.Thread(target=self._drain, daemon=True)

    def wait_ready(self) -> None:
        """Read the banner up to the end of the command that is ready to paste."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.banner += line
            if found := READY.search(line):
                self.url = found[1]
            if line.startswith("  -d "):
                self._log.start()
                return
        raise AssertionError(f"the server did not start:\n{self.banner}")

    @property
    def client(self) -> openai.OpenAI:
        """The official client, which shows every failure."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=0)

    @property
    def curl(self) -> str:
        """The command of the banner."""
        return self.banner[self.banner.index("curl ") :]

    @property
    def worker_pid(self) -> int:
        """The process id of the engine's process, by its command line."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        (worker,) = [
            int(child)
            for child in children
            if b"server.worker.process" in Path(f"/proc/{child}/cmdline").read_bytes()
        ]
        return worker

    def series(self, name: str) -> float:
        """One sample of `/metrics`, by its name and labels as they are written."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        (value,) = [line.split()[1] for line in lines if line.startswith(f"{name} ")]
        return float(value)

    def close(self) -> None:
        self.process.terminate()
        if self._log.is_alive():
            self._log.join(30)
        self.process.communicate(timeout=30)

    def _drain(self) -> None:
        """Read the log on: a full pipe would stop the server at its next line."""
        assert self.process.stdout is not None
        while self.process.stdout.readline():
            pass


def wait_until(condition: Callable[[], bool]) -> None:
    """Ask again and again; every `condition` here costs an HTTP request, so this does not spin."""
    while not condition():
        pass
