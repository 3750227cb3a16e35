"""The loop with a scripted channel, and the process as the operating system sees it."""

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable

import pytest

from lookm.config import EngineConfig
from lookm.types import Request
from server.fake import engine as fake
from server.fake.engine import FakeEngine
from server.worker import process, wire
from server.worker.client import EngineClient
from server.worker.heartbeat import Pulse
from tests.server.worker.conftest import Running

Make = Callable[..., Request]

PARENT = """
import asyncio, sys
from lookm.config import EngineConfig
from server.worker.client import EngineClient

async def main():
    client = EngineClient(EngineConfig(model=sys.argv[1], threads=1))
    await client.start()
    if sys.argv[1] == "fake":
        await client.wait_ready()
    while client.pid is None:
        await asyncio.sleep(0)
    print(client.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


class Script:
    """A channel whose incoming messages are known beforehand."""

    def __init__(self, *messages: wire.Up) -> None:
        self.incoming = deque(messages)
        self.sent: list[wire.Down] = []

    def waiting(self) -> bool:
        return bool(self.incoming)

    def receive(self) -> wire.Up:
        return self.incoming.popleft()

    def send(self, message: wire.Down) -> None:
        self.sent.append(message)


def serve(script: Script, engine: FakeEngine | None = None) -> list[wire.Down]:
    """Run the loop until the script has run out (the loop asks for more: IndexError)."""
    engine = engine or FakeEngine.from_config(EngineConfig(model="fake"))
    with pytest.raises(IndexError):
        process.serve(script, engine, Pulse())  # type: ignore[arg-type]
    return [each for each in script.sent if not isinstance(each, wire.Accepted)]


def test_loop_sends_ready_then_one_message_a_step(make_request: Make) -> None:
    ready, *steps = serve(Script(wire.Add(make_request("a")), wire.Add(make_request("b"))))
    assert isinstance(ready, wire.Ready)
    assert len(steps) == 4
    for step in steps:
        assert isinstance(step, wire.Step)
        assert [event.request_id for event in step.events] == ["a", "b"]
    assert isinstance(steps[-1], wire.Step)
    assert steps[-1].stats.generated_tokens_total == 8


def test_loop_answers_a_refused_request_and_goes_on(make_request: Make) -> None:
    bad = make_request("bad", ids=(fake.REJECT_ID,))
    _, rejected, *steps = serve(Script(wire.Add(bad), wire.Add(make_request("good"))))
    assert isinstance(rejected, wire.Rejected)
    assert (rejected.request_id, rejected.error) == ("bad", "RequestError")
    assert len(steps) == 4


def test_loop_leaves_at_shutdown_with_work_in_hand(make_request: Make) -> None:
    script = Script(wire.Add(make_request()), wire.Shutdown())
    process.serve(script, FakeEngine.from_config(EngineConfig(model="fake")), Pulse())  # type: ignore[arg-type]
    assert [type(message) for message in script.sent] == [wire.Ready, wire.Accepted]


def test_the_failure_message_never_quotes_what_the_exception_was_given(
    caplog: pytest.LogCaptureFixture,
) -> None:
    prompt = "a " + "secret"
    try:
        {}[prompt]
    except KeyError as error:
        failed = process._failure(error)
    assert failed.error == "KeyError"
    assert "secret" not in failed.message + caplog.text
    assert "test_the_failure_message" in caplog.text
    assert process._failure(RuntimeError("CUDA out of memory")).message == "CUDA out of memory"


def test_threads_are_set_before_torch_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    process.set_thread_environment(EngineConfig())
    assert (os.environ["OMP_WAIT_POLICY"], os.environ["OMP_NUM_THREADS"]) == ("PASSIVE", "7")
    process.set_thread_environment(EngineConfig(threads=3))
    assert os.environ["OMP_NUM_THREADS"] == "3"
    monkeypatch.delenv("OMP_NUM_THREADS")
    process.set_thread_environment(EngineConfig())
    assert int(os.environ["OMP_NUM_THREADS"]) >= 1


def test_importing_the_worker_and_the_client_imports_no_torch() -> None:
    code = (
        "import sys, server.worker.process, server.worker.client, server.fake.engine;"
        "sys.exit('torch' in sys.modules or 'lookm.engine' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")
@pytest.mark.parametrize("model", ["fake", "fake:load_s=60"])
def test_worker_dies_with_its_killed_parent(model: str) -> None:
    command = [sys.executable, "-c", PARENT, model]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        worker = os.pidfd_open(int(parent.stdout.readline()))
        try:
            assert not select.select([worker], [], [], 0)[0]
            parent.send_signal(signal.SIGKILL)
            assert select.select([worker], [], [], 20)[0], "the worker outlived its parent"
        finally:
            os.close(worker)


@pytest.mark.anyio
async def test_worker_leaves_signals_to_its_parent(running: Running, make_request: Make) -> None:
    async with running() as client:
        assert client.pid is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(client.pid, number)
        assert [e.finish async for e in client.submit(make_request())][-1] == "length"
        assert client.restarts == 0


@pytest.mark.anyio
async def test_stopped_client_leaves_no_process(running: Running) -> None:
    async with running() as client:
        pid = client.pid
        assert pid is not None
    assert client.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.anyio
async def test_stop_does_not_wait_for_a_loading_worker() -> None:
    client = EngineClient(EngineConfig(model="fake:load_s=60"))
    await client.start()
    async with asyncio.timeout(10):
        await client.stop()
    assert (client.state, client.pid) == ("stopped", None)
