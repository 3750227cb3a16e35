"""One grammar's process: compiles it, then follows the answers that use it.

What a client sent runs here, so the system bounds it: memory, processor time for compiling and for
each mask, by signals that nothing here handles. Whatever ends this process costs only the answers
that follow this grammar. It ends itself when the engine closes the socket.
"""

import contextlib
import ctypes
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator

from lookm.errors import RequestError
from lookm.grammar.matcher import Answer, Compiled, Vocabulary
from lookm.grammar.wire import Ask, Tell, take_asks, tell
from lookm.types import Structure

MEMORY_BYTES = 96 * 2**20  # more than the process has when it begins
COMPILE_CPU_S = 0.3
MASK_CPU_S = 0.5
SLOW_MASK_S = 0.02  # from here on others come first
PR_SET_PDEATHSIG = 1


def serve(vocabulary: Vocabulary, structure: Structure, engine: socket.socket, host: int) -> None:
    """Compile, say so to the `host`, and answer the engine until it closes the socket."""
    _limit_memory()
    _die_with_parent()
    try:
        with _cpu_limit(COMPILE_CPU_S):
            compiled = vocabulary.compile(structure)
            _ = vocabulary.digits
    except RequestError as error:
        engine.sendall(tell(Tell.REFUSED, payload=str(error).encode()))
        return
    os.write(host, b"+")
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        _answer(compiled, engine)


def _answer(compiled: Compiled, engine: socket.socket) -> None:
    answers: dict[int, Answer] = {}
    buffer = bytearray()
    while received := engine.recv(2**16):
        buffer += received
        for ask, number, token in take_asks(buffer):
            if ask is Ask.CLOSE:
                answers.pop(number, None)
                continue
            began_s = time.process_time()
            with _cpu_limit(MASK_CPU_S):
                reply = _reply(compiled, answers, ask, number, token)
            took_s = time.process_time() - began_s
            if took_s > SLOW_MASK_S:
                os.nice(5)
            what, payload = reply
            engine.sendall(tell(what, number, int(took_s * 1e6), payload))


def _reply(
    compiled: Compiled, answers: dict[int, Answer], ask: Ask, number: int, token: int
) -> tuple[Tell, bytes]:
    if ask is Ask.OPEN:
        answers[number] = compiled.answer()
    answer = answers[number]
    if ask is Ask.ADVANCE:
        answer.advance(token)
    complete = ask is Ask.ADVANCE and answer.complete
    allowed = answer.allowed()
    if complete:
        return Tell.COMPLETE, allowed
    if answer.failure is not None:
        return Tell.FAILED, answer.failure.encode()
    return Tell.MASK, allowed


@contextlib.contextmanager
def _cpu_limit(seconds: float) -> Iterator[None]:
    """SIGPROF, which ends the process, where the body takes more of the processor."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        with open("/proc/self/statm") as statm:
            now_bytes = int(statm.read().split()[0]) * resource.getpagesize()
    except OSError:  # not Linux
        return
    most = now_bytes + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _die_with_parent() -> None:
    """A stopped process cannot notice that its socket was closed."""
    prctl: Callable[..., int] | None = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
