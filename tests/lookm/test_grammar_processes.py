"""Whatever a grammar costs, it costs its own process: others do not notice, and nothing is left."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lookm.errors import RequestError
from lookm.grammar import client
from lookm.grammar.client import Grammars
from lookm.types import Structure
from tests.lookm import tiny
from tests.lookm.ascii_tokenizer import END, AsciiProcessor
from tests.lookm.grammars import opened, settle
from tests.lookm.tiny import random_prompt, tiny_engine

ANY = Structure("json_object")


def hostile(name: str = "w") -> Structure:
    """1.2 KB that llguidance works on for minutes, in gigabytes."""
    patterns = [{"type": "string", "pattern": f"{name}{i}"} for i in range(30)]
    return Structure("json_schema", json.dumps({"allOf": patterns}))


def const(value: object) -> Structure:
    return Structure("json_schema", json.dumps({"const": value}))


@pytest.fixture
def grammars() -> Grammars:
    return Grammars(lambda: AsciiProcessor().tokenizer_json, [END])


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(tiny, "WordProcessor", AsciiProcessor)
    return tiny_engine()


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    if not found.parent.exists():
        return []
    return [int(each) for each in found.read_text().split()]


def hosts() -> list[int]:
    """Grammar processes of this one."""
    return [
        pid
        for pid in children(os.getpid())
        if b"lookm.grammar.process" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def eventually(condition: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.01)


def test_a_hostile_schema_is_refused_while_others_are_answered(engine: Any) -> None:
    prompt = random_prompt(0, seed=1)
    engine.add(prompt.request("hostile", ignore_eos=False, structure=hostile()))
    slowest_s, num_plain = 0.0, 0
    while True:
        if "plain" not in engine._sequences:
            engine.add(prompt.request("plain", max_tokens=400))
        began_s = time.thread_time()
        events = engine.step()
        slowest_s = max(slowest_s, time.thread_time() - began_s)
        num_plain += sum(event.request_id == "plain" for event in events)
        refused = [event for event in events if event.request_id == "hostile"]
        if refused:
            break
    assert (refused[0].refused, refused[0].param) == ("RequestError", "response_format")
    assert "0.3 s" in refused[0].error
    assert num_plain > 3
    assert slowest_s < 2
    engine.abort("plain")
    engine.step()
    assert engine.stats().used_bytes == 0


def test_a_good_schema_does_not_wait_for_hostile_ones(grammars: Grammars) -> None:
    others = [grammars.open(hostile(f"x{n}")) for n in range(10)]
    settle(grammars, good := grammars.open(ANY))
    assert good.ready
    assert not all(other.refusal for other in others)
    for other in others:
        other.close()


def test_a_grammar_is_compiled_once_and_a_refusal_remembered(grammars: Grammars) -> None:
    opened(grammars, const(1)).close()
    again = grammars.open(const(1))
    assert len(grammars._served) == 1
    settle(grammars, again)
    with pytest.raises(RequestError):
        opened(grammars, Structure("regex", "(a"))
    with pytest.raises(RequestError):
        grammars.open(Structure("regex", "(a"))


def test_who_leaves_ends_the_compiling(grammars: Grammars) -> None:
    settle(grammars, grammars.open(const(1)))
    grammar = grammars.open(hostile())
    (host,) = hosts()[-1:]
    eventually(lambda: len(children(host)) == 2)
    grammar.close()
    eventually(lambda: len(children(host)) == 1)


def test_processes_are_bounded_and_those_in_use_stay(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "MAX_PROCESSES", 3)
    used = opened(grammars, const(0))
    for n in range(1, 5):
        opened(grammars, const(n)).close()
    assert len(grammars._served) == 3
    assert any(each.structure == const(0) for each in grammars._served.values())
    held = [opened(grammars, const(n)) for n in (5, 6)]
    late = grammars.open(const(7))
    grammars.wait(0.05)
    grammars.poll()
    assert not late.ready
    held[0].close()
    settle(grammars, late)
    used.close()


@pytest.mark.parametrize(
    ("number", "refused", "reason"),
    [(signal.SIGKILL, None, "process has ended"), (signal.SIGPROF, "RequestError", "0.5 s")],
)
def test_a_grammar_whose_process_dies_costs_only_its_own_requests(
    engine: Any, number: int, refused: str | None, reason: str
) -> None:
    """A signal of its limits is its schema's doing, and refuses it; any other is ours."""
    requests = [
        random_prompt(0, seed=1).request(
            name, ignore_eos=False, max_tokens=30, temperature=1.0, seed=3, structure=structure
        )
        for name, structure in (("a", ANY), ("b", const("b")))
    ]
    for request in requests:
        engine.add(request)
    events: dict[str, list[Any]] = {"a": [], "b": []}
    while engine._sequences["a"].awaits_mask:
        for event in engine.step():
            events[event.request_id].append(event)
    (host,) = hosts()[-1:]
    os.kill(children(host)[0], number)
    while engine.has_work:
        for event in engine.step():
            events[event.request_id].append(event)
    assert (events["a"][-1].finish, events["a"][-1].refused) == ("error", refused)
    assert reason in events["a"][-1].error
    assert events["b"][-1].finish == "stop"
    assert engine.stats().used_bytes == 0


def test_a_grammar_process_that_dies_is_replaced(grammars: Grammars) -> None:
    first = opened(grammars, const(1))
    (host,) = hosts()[-1:]
    os.kill(host, signal.SIGKILL)
    until_s = time.monotonic() + 30
    while first.failure is None:
        assert time.monotonic() < until_s
        grammars.wait(1)
        grammars.poll()
    opened(grammars, const(1))
    assert host not in hosts()


def test_nothing_is_left_of_an_engine_that_is_killed(tmp_path: Path) -> None:
    """While one of its grammars is being compiled, and another waits for its turn."""
    program = """
import os, signal, sys, time
from pathlib import Path
from tests.lookm.test_grammar_processes import *
grammars = Grammars(lambda: AsciiProcessor().tokenizer_json, [END])
opened(grammars, ANY)
kept = [grammars.open(hostile(f"y{n}")) for n in range(3)]
host = hosts()[0]
while len(children(host)) < 4:
    time.sleep(0.01)
print(host, *children(host), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=False)
    assert done.returncode == -signal.SIGKILL
    pids = [int(each) for each in done.stdout.split()]
    assert len(pids) == 5
    eventually(lambda: not any(_is_alive(pid) for pid in pids))


def _is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_grammar_process_does_without_torch() -> None:
    check = "import sys, lookm.grammar.process; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_a_compiler_gets_so_much_memory_and_no_more() -> None:
    program = "from lookm.grammar import child; child._limit_memory(); bytearray({} * 2**20)"
    most = 96
    for megabytes, status in ((most // 2, 0), (most + 32, 1)):
        done = subprocess.run(
            [sys.executable, "-c", program.format(megabytes)], capture_output=True, check=False
        )
        assert done.returncode == status
