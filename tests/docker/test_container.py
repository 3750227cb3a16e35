"""The image, run: locked down, healthy, drained at stop, back after a kill.

Needs a docker engine and the image (`docker build -t lookm-server .`); takes about a minute. Kills
processes of its own containers, so it runs as root on the engine's machine.
"""

import json
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.server.requests import CHAT, chat, data_url, image, png

IMAGE = "lookm-server"
START_S = 90.0
LOCKED_DOWN = ("--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges")


def docker(*arguments: str) -> str:
    run = subprocess.run(["docker", *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def has_image() -> bool:
    command = ["docker", "image", "inspect", IMAGE]
    return (
        bool(shutil.which("docker")) and not subprocess.run(command, capture_output=True).returncode
    )


pytestmark = [
    pytest.mark.slow,
    pytest.mark.e2e,
    pytest.mark.skipif(not has_image(), reason="no docker engine with the image lookm-server"),
]


class Container:
    """The demo model's server, restarted by docker when it dies."""

    def __init__(self) -> None:
        self.name = f"lookm-test-{uuid.uuid4().hex[:8]}"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        docker("run", "--detach", "--name", self.name, "--network=host", "--restart=on-failure",
               *LOCKED_DOWN, f"--env=LOOKM_PORT={port}", "--env=LOOKM_HOST=127.0.0.1", IMAGE,
               "serve", "--kv-cache-memory", "256MiB")  # fmt: skip

    def state(self, field: str) -> str:
        return docker("inspect", "--format", "{{." + field + "}}", self.name)

    def wait_ready(self) -> None:
        wait_until(lambda: self._status("/readyz") == 200)

    def series(self, name: str) -> float:
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        (value,) = [line.split()[1] for line in lines if line.startswith(f"{name} ")]
        return float(value)

    def _status(self, path: str) -> int | None:
        try:
            return httpx.get(self.url + path).status_code
        except httpx.HTTPError:
            return None


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + START_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.2)


def stream(url: str) -> list[str]:
    """The lines of a streamed answer of 1,000 tokens."""
    body = chat("count", model="llava-demo", max_tokens=1000, ignore_eos=True, stream=True)
    with httpx.stream("POST", url + CHAT, json=body, timeout=120) as answer:
        return [line for line in answer.iter_lines() if line]


@pytest.fixture
def container() -> Iterator[Container]:
    container = Container()
    try:
        container.wait_ready()
        yield container
    finally:
        docker("rm", "--force", "--volumes", container.name)


def test_it_answers_locked_down_and_is_healthy(container: Container) -> None:
    body: dict[str, Any] = chat(image(data_url(png(size=(64, 64)))), "What is in image 1?")
    body |= {"model": "llava-demo", "kv_cache": "look-m@0.2"}
    usage = httpx.post(container.url + CHAT, json=body, timeout=60).json()["usage"]
    assert usage["kv_cache"]["kept_tokens"] < usage["prompt_tokens"]
    assert docker("exec", container.name, "id", "-u") == "10001"
    assert (
        "(C++ kernels)"
        in subprocess.run(["docker", "logs", container.name], capture_output=True, text=True).stderr
    )
    wait_until(lambda: container.state("State.Health.Status") == "healthy")
    last = json.loads(docker("inspect", container.name))[0]["State"]["Health"]["Log"][-1]
    assert '"ready"' in last["Output"]


def test_stop_lets_a_stream_finish(container: Container) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(stream, container.url)
        wait_until(lambda: container.series("lookm_requests_running") == 1)
        docker("stop", "--time=45", container.name)
        lines = answer.result()
    assert lines[-1] == "data: [DONE]"
    assert '"finish_reason":"length"' in lines[-2]
    assert container.state("State.ExitCode") == "0"


def test_a_killed_server_is_back(container: Container) -> None:
    subprocess.run(["kill", "-9", container.state("State.Pid")], check=True)
    wait_until(lambda: container.state("RestartCount") == "1")
    container.wait_ready()


def test_a_killed_engine_ends_its_streams_and_is_replaced(container: Container) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(stream, container.url)
        wait_until(lambda: container.series("lookm_requests_running") == 1)
        processes = docker("top", container.name, "-o", "pid,args").splitlines()
        (worker,) = [line.split()[0] for line in processes if "server.worker.process" in line]
        subprocess.run(["kill", "-9", worker], check=True)
        lines = answer.result()
    assert '"code":"engine_failed"' in lines[-2].replace(": ", ":")
    assert lines[-1] == "data: [DONE]"
    container.wait_ready()
    assert container.series("lookm_worker_restarts_total") == 1
    assert container.series("lookm_kv_cache_used_bytes") == 0
    assert container.state("RestartCount") == "0"
