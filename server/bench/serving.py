"""Servers that are measured: started on a free port, awaited, and stopped.

Knows processes. What they say goes to a file that is shown where they fail to start.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

import httpx

START_TIMEOUT_S = 300
STOP_TIMEOUT_S = 60


def lookm_command(model: str, *flags: str) -> tuple[str, ...]:
    """This server, as users start it."""
    return (sys.executable, "-m", "server", "serve", "--model", model, *flags)


@contextlib.contextmanager
def serving(
    command: Sequence[str], *, health: str = "/readyz", threads: int | None = None
) -> Iterator[str]:
    """Run `command --host --port` until the block ends; yields its URL. Raises `RuntimeError`."""
    port = free_port()
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            stdout=log,
            stderr=log,
        )
        url = f"http://127.0.0.1:{port}"
        try:
            if not _ready(url + health, process):
                log.seek(0)
                output = log.read().decode(errors="replace")[-2000:]
                raise RuntimeError(f"{' '.join(command)} did not start:\n{output}")
            yield url
        finally:
            _stop(process)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _ready(url: str, process: "subprocess.Popen[bytes]") -> bool:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, timeout=5, trust_env=False).status_code == 200:
                return True
        time.sleep(0.2)
    return False


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
