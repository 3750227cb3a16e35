"""A server is stopped, its worker stopped and killed, its prompts poisonous: minutes of it."""

import random
import signal
import subprocess
import sys
import time

import pytest

from tests.faults.life import STOPS, hurt_worker, poison, stop_under_fire, stop_under_floods
from tests.server.process import ServerProcess, serving_process
from tests.server.test_stopping import handles

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

DRAIN_S = 3.0
DEMO = ("--drain-timeout-s", str(DRAIN_S), "--threads", "2", "--receive-timeout-s", "60")


@pytest.mark.parametrize("signals", STOPS, ids=len)
def test_a_stop_under_fire(signals: tuple[int, ...]) -> None:
    server = ServerProcess(*DEMO)
    try:
        server.wait_ready()
        figures = stop_under_fire(server, "llava-demo", signals)
    finally:
        server.process.kill()
        server.process.communicate()
    figures.record(f"{len(signals)} x SIGTERM under fire, drain {DRAIN_S:g} s")
    figures.hold()
    assert figures.status == 0
    assert figures.took_s < 2.2 + (DRAIN_S if len(signals) == 1 else 0)


@pytest.mark.parametrize("count", [1, 2])
def test_a_stop_under_floods_that_nobody_reads(count: int) -> None:
    flags = ("--model", "fake:step_s=0.001", "--threads", "1", "--drain-timeout-s", str(DRAIN_S))
    server = ServerProcess(*flags)
    try:
        server.wait_ready()
        figures = stop_under_floods(server, count)
    finally:
        server.process.kill()
        server.process.communicate()
    figures.record(f"{count} x SIGTERM beside 80 unread choices, drain {DRAIN_S:g} s")
    figures.hold()
    assert figures.status == 0
    assert figures.took_s < 2.2 + (DRAIN_S if count == 1 else 0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV])
def test_a_worker_that_is_hurt_is_replaced_and_everybody_is_told(number: int) -> None:
    with serving_process(*DEMO) as server:
        for _ in range(2):
            assert hurt_worker(server, "llava-demo", number).took_s < 60
        assert server.series("lookm_kv_cache_used_bytes") == 0
        assert server.series("lookm_worker_restarts_total") == 2


@pytest.mark.parametrize("word", ["fake:exit", "fake:raise", "fake:hang"])
def test_a_poisonous_prompt_costs_two_workers(word: str) -> None:
    with serving_process("--model", "fake", "--threads", "1") as server:
        assert poison(server, word, 4) == [503, 503, 422, 422]
        assert server.series("lookm_worker_restarts_total") == 2


def test_a_signal_at_a_random_moment_of_the_start() -> None:
    rng = random.Random(0)
    for _ in range(20):
        command = (sys.executable, "-m", "server", "serve", "--port", "0")
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            while not handles(process.pid, signal.SIGTERM):
                pass
            time.sleep(rng.uniform(0, 12))
            begun_s = time.monotonic()
            process.send_signal(rng.choice((signal.SIGTERM, signal.SIGINT)))
            process.communicate(timeout=60)
            assert process.returncode == 0
            assert time.monotonic() - begun_s < 2.2
        finally:
            process.kill()
