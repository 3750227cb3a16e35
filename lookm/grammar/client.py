"""The engine's side of structured answers: opens grammars, reads their masks, waits for nobody.

Starts the grammar process when told to, or with the first structured request. A process that serves
a grammar stays for a while when nobody uses it: that is the cache. Every reply is read when it is
there; an answer whose mask is late sits out a step (`TokenGrammar.ready`). Knows nothing about
requests or steps.
"""

import contextlib
import functools
import itertools
import json
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from lookm.errors import QueueFullError, RequestError
from lookm.grammar.source import check_size
from lookm.grammar.token_grammar import TokenGrammar
from lookm.grammar.wire import ASK, ORDER, Ask, Order, Tell, take_tells
from lookm.types import Structure

MAX_PROCESSES = 32  # of them in use, or kept for the next who asks for the same
MAX_REFUSALS = 256  # that are remembered
COMPILE_S = 60.0  # by then the grammar process has answered, however busy the machine is
REPLY_S = 5.0
QUICK_US = 2000
PATIENCE_S, PATIENCE_EACH_S = 0.005, 0.00025

Key = tuple[str, str]


@dataclass(slots=True, eq=False)
class _Served:
    """One grammar's process. `link` is None until there is room for it; since `silent_s` it has
    owed replies."""

    number: int
    key: Key
    structure: Structure
    link: socket.socket | None = None
    compiled: bool = False
    quick: bool = True
    owed: int = 0
    silent_s: float = 0.0
    buffer: bytearray = field(default_factory=bytearray)
    answers: dict[int, TokenGrammar] = field(default_factory=dict)

    @property
    def is_late(self) -> bool:
        limit_s = REPLY_S if self.compiled else COMPILE_S
        return bool(self.owed) and time.monotonic() - self.silent_s > limit_s


class Grammars:
    """All grammars of one engine. `describe` is called once, for the tokenizer's own JSON."""

    def __init__(self, describe: Callable[[], str | None], end_ids: Iterable[int]) -> None:
        self._describe = describe
        self._description = b""
        self._end_ids = sorted(end_ids)
        self._control: socket.socket | None = None
        self._selector = selectors.DefaultSelector()
        self._numbers = itertools.count()
        self._served: OrderedDict[Key, _Served] = OrderedDict()  # the longest unused first
        self._unstarted: deque[_Served] = deque()
        self._refusals: OrderedDict[Key, str] = OrderedDict()
        self._links: set[socket.socket] = set()
        weakref.finalize(self, _close_all, self._links)

    def warm_up(self) -> None:
        """Start what the first structure would wait for: a large tokenizer takes a moment."""
        if self._control is None:
            self._spawn()

    def open(self, structure: Structure) -> TokenGrammar:
        """A place at the beginning of a grammar; compiled elsewhere where it is a new one.

        Raises `RequestError` for what is known to be none.
        """
        check_size(structure)
        key = (structure.kind, structure.source)
        if key in self._refusals:
            raise RequestError(self._refusals[key], param=structure.param)
        served = self._served.get(key)
        if served is None:
            served = _Served(next(self._numbers), key, structure)
            self._served[key] = served
            self._unstarted.append(served)
        self._served.move_to_end(key)
        send = functools.partial(self._send, served)
        grammar = TokenGrammar(next(self._numbers), structure.param, send)
        served.answers[grammar.number] = grammar
        if served.link is not None:
            self._send(served, Ask.OPEN, grammar.number)
        self._start_some()
        return grammar

    def poll(self) -> None:
        """Take in what has been replied. Never waits."""
        if not self._served:
            return
        self._read(0)
        for served in [each for each in self._served.values() if each.is_late]:
            self._end(served, "its process takes too long")
        self._start_some()

    def settle(self) -> None:
        """Wait, for milliseconds, for the masks of grammars that were quick so far."""
        owed = self._owed_quick()
        until_s = time.monotonic() + PATIENCE_S + PATIENCE_EACH_S * owed
        while owed and (left_s := until_s - time.monotonic()) > 0:
            self._read(left_s)
            owed = self._owed_quick()

    def wait(self, seconds: float) -> None:
        """Sleep until something is replied, or so long."""
        self._read(seconds)

    def _owed_quick(self) -> int:
        return sum(each.owed for each in self._served.values() if each.quick and each.compiled)

    # --- processes ------------------------------------------------------------------------------

    def _start_some(self) -> None:
        while self._unstarted and self._has_room():
            self._start(self._unstarted.popleft())

    def _has_room(self) -> bool:
        started = [each for each in self._served.values() if each.link is not None]
        if len(started) < MAX_PROCESSES:
            return True
        idle = next((each for each in started if not each.answers), None)
        if idle is not None:
            self._forget(idle)
        return idle is not None

    def _start(self, served: _Served) -> None:
        control = self._control or self._spawn()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        structure = served.structure
        with tempfile.TemporaryFile() as source:
            source.write(json.dumps([structure.kind, structure.source, structure.param]).encode())
            source.seek(0)
            order = ORDER.pack(Order.START, served.number)
            files = [theirs.fileno(), source.fileno()]
            with contextlib.suppress(OSError):  # then our end of the socket ends, too
                socket.send_fds(control, [order], files)
        theirs.close()
        served.link = ours
        self._links.add(ours)
        self._selector.register(ours, selectors.EVENT_READ, served)
        for number in served.answers:
            self._send(served, Ask.OPEN, number)

    def _spawn(self) -> socket.socket:
        """The grammar process. It imports from where we import, and shares no setting of ours."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        environment.pop("GLIBC_TUNABLES", None)  # of huge pages, which many small processes waste
        if not self._description:  # once: should the process die, nobody waits for this again
            described = {"tokenizer": self._describe(), "end_ids": self._end_ids}
            self._description = json.dumps(described).encode()
        with tempfile.TemporaryFile() as file:
            file.write(self._description)
            file.seek(0)
            process = subprocess.Popen(
                [sys.executable, "-m", "lookm.grammar.process", str(theirs.fileno())],
                stdin=file,
                pass_fds=[theirs.fileno()],
                env=environment,
            )
        theirs.close()
        self._control = ours
        self._selector.register(ours, selectors.EVENT_READ)
        self._end_process = weakref.finalize(self, _end_process, ours, process)
        return ours

    def _lose_process(self) -> None:
        """It is gone; the next grammar starts another."""
        assert self._control is not None
        self._selector.unregister(self._control)
        self._control = None
        self._end_process()

    def _forget(self, served: _Served) -> None:
        """End its process."""
        del self._served[served.key]
        if served.link is None:
            self._unstarted.remove(served)
            return
        self._selector.unregister(served.link)
        served.link.close()
        self._links.discard(served.link)
        if self._control is not None:
            with contextlib.suppress(OSError):
                self._control.send(ORDER.pack(Order.DROP, served.number))

    def _end(self, served: _Served, reason: str) -> None:
        """Its process is of no use any more, nor are the answers that follow it."""
        for grammar in served.answers.values():
            grammar.failure = f"the answer's structure cannot be followed: {reason}"
        served.answers.clear()
        self._forget(served)

    def _refuse(self, served: _Served, kind: type[RequestError | QueueFullError], why: str) -> None:
        for grammar in served.answers.values():
            grammar.refusal = kind(why, param=grammar.param)
        served.answers.clear()
        self._forget(served)
        if kind is RequestError and not served.compiled:
            self._refusals[served.key] = why
            if len(self._refusals) > MAX_REFUSALS:
                self._refusals.popitem(last=False)

    # --- talk -----------------------------------------------------------------------------------

    def _send(self, served: _Served, what: Ask, number: int, token: int = 0) -> None:
        if what is Ask.CLOSE:
            if served.answers.pop(number, None) is None:
                return  # it has ended by itself
            if not served.answers and not served.compiled:
                self._forget(served)  # nobody wants it: not even to be compiled
                return
        else:
            served.silent_s = served.silent_s if served.owed else time.monotonic()
            served.owed += 1
        if served.link is not None:
            with contextlib.suppress(OSError):  # full or gone: it will be late, or found to be gone
                served.link.send(ASK.pack(what, number, token))

    def _read(self, seconds: float) -> None:
        if not self._selector.get_map():
            time.sleep(seconds)
            return
        for key, _ in self._selector.select(seconds):
            if key.data is None:
                self._lose_process()
            else:
                self._receive(key.data)

    def _receive(self, served: _Served) -> None:
        assert served.link is not None
        try:
            received = served.link.recv(2**20)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        served.buffer += received
        for told in take_tells(served.buffer):
            self._hear(served, *told)
        if not received and self._served.get(served.key) is served:
            self._end(served, "its process has ended")

    def _hear(self, served: _Served, what: Tell, number: int, took_us: int, rest: bytes) -> None:
        if self._served.get(served.key) is not served:
            return
        if what is Tell.REFUSED:
            self._refuse(served, RequestError, rest.decode())
        elif what in (Tell.COSTLY, Tell.BUSY):
            why = f"{served.structure.kind} cannot be followed: {rest.decode()}"
            self._refuse(served, RequestError if what is Tell.COSTLY else QueueFullError, why)
        else:
            served.compiled = True
            served.quick = took_us < QUICK_US
            served.owed -= 1
            served.silent_s = time.monotonic()
            grammar = served.answers.get(number)
            if grammar is not None:
                grammar.hear(what, rest)


def _close_all(links: set[socket.socket]) -> None:
    for link in links:
        link.close()


def _end_process(control: socket.socket, process: "subprocess.Popen[bytes]") -> None:
    """It leaves when its control socket is closed."""
    control.close()
    try:
        process.wait(timeout=2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
