"""The grammar process: `python -m lookm.grammar.process CONTROL_FD`, the tokenizer on its stdin.

Loads the tokenizer once and forks a child for each grammar, which shares it. Decides who compiles
when, so that a small grammar is ready at once beside ten large ones, and all of them together leave
the processor to the engine: `MAX_YOUNG` at a time for `YOUNG_S` of a processor each (a busy machine
makes none older); those that take longer one after the other, with what others leave. Kills and
reaps; runs nothing that a client sent itself.

Ends when the engine closes the control socket, and its children with it. SIGINT and SIGTERM are
left to the engine, which may still have answers to finish. No torch: this module is imported by a
process that must stay small.
"""

import contextlib
import json
import os
import select
import signal
import socket
import sys
from collections import deque
from dataclasses import dataclass, field
from typing import NoReturn

from lookm.grammar import child
from lookm.grammar.matcher import Vocabulary
from lookm.grammar.wire import ORDER, Order, Tell, tell
from lookm.types import Structure

YOUNG_S = 0.05
LOOK_EVERY_S = 0.02
MAX_YOUNG = 2
MAX_OLD = 8  # that wait for their turn
NICE, OLD_NICE = 5, 10

TOO_COSTLY = (
    f"compiling it takes more than {child.COMPILE_CPU_S:g} s or "
    f"{child.MEMORY_BYTES >> 20} MiB: make it simpler"
)
TOO_COSTLY_TO_FOLLOW = (
    f"one token of it takes more than {child.MASK_CPU_S:g} s or "
    f"{child.MEMORY_BYTES >> 20} MiB: make it simpler"
)
BUSY = "it takes long to compile, and so do others that came before it: try again later"


@dataclass(slots=True)
class Job:
    """A grammar from its order to the end of its process. `pipe` ends when the process does.

    `socket` is a second hold on the child's end of the engine's socket, until the child has ended:
    the engine learns why before it learns that.
    """

    number: int
    socket: int
    source: int
    pid: int = 0
    pipe: int = -1
    compiled: bool = False

    @property
    def spent_s(self) -> float:
        """What its process has taken of a processor: fields 14 and 15 of proc(5)'s `stat`."""
        try:
            with open(f"/proc/{self.pid}/stat") as stat:
                fields = stat.read().rpartition(")")[2].split()
        except OSError:  # not Linux: it has had its time
            return YOUNG_S
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def tell(self, what: Tell, reason: str) -> None:
        """Tell the engine in the place of a process that has not compiled its grammar."""
        with contextlib.suppress(OSError):
            os.write(self.socket, tell(what, payload=reason.encode()))

    def close(self) -> None:
        """Nobody serves it."""
        os.close(self.socket)
        os.close(self.source)


@dataclass(slots=True)
class GrammarProcess:
    """See the module."""

    control: socket.socket
    vocabulary: Vocabulary
    waiting: deque[Job] = field(default_factory=deque)
    young: list[Job] = field(default_factory=list)
    old: deque[Job] = field(default_factory=deque)
    jobs: dict[int, Job] = field(default_factory=dict)

    def run(self) -> None:
        """Until the engine is gone."""
        while True:
            pipes = {job.pipe: job for job in self.jobs.values() if job.pipe >= 0}
            watched = [self.control.fileno(), *pipes]
            ready, _, _ = select.select(watched, [], [], self._until_next_s())
            for each in ready:
                if each in pipes:
                    self._hear(pipes[each])
                elif not self._obey():
                    return
            self._age()
            while self.waiting and len(self.young) < MAX_YOUNG:
                self._fork(self.waiting.popleft())

    def end(self) -> None:
        """Leave no child behind."""
        for job in self.jobs.values():
            if job.pid:
                os.kill(job.pid, signal.SIGKILL)

    def _until_next_s(self) -> float | None:
        return LOOK_EVERY_S if self.young else None

    def _obey(self) -> bool:
        """One order; False where there will be no more."""
        message, files, _, _ = socket.recv_fds(self.control, ORDER.size, 2)
        if len(message) < ORDER.size:
            return False
        order, number = ORDER.unpack(message)
        if order == Order.START:
            engine, source = files
            self.jobs[number] = Job(number, engine, source)
            self.waiting.append(self.jobs[number])
        elif (job := self.jobs.get(number)) is not None:
            if job.pid:
                os.kill(job.pid, signal.SIGKILL)  # its pipe ends, and it is reaped
            else:
                self.waiting.remove(job)
                job.close()
                del self.jobs[number]
        return True

    def _fork(self, job: Job) -> None:
        job.pipe, ours = os.pipe()
        job.pid = os.fork()
        if not job.pid:
            _become_child(self.vocabulary, job.socket, job.source, ours)
        os.close(ours)
        self.young.append(job)

    def _hear(self, job: Job) -> None:
        """A child has compiled its grammar, or has ended."""
        if os.read(job.pipe, 1):
            job.compiled = True
        else:
            os.close(job.pipe)
            _, status = os.waitpid(job.pid, 0)
            killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            if killed and not job.compiled:
                job.tell(Tell.BUSY, BUSY)
            elif status and not killed:
                job.tell(Tell.COSTLY, TOO_COSTLY_TO_FOLLOW if job.compiled else TOO_COSTLY)
            job.close()
            del self.jobs[job.number]
        self._end_compiling(job)

    def _end_compiling(self, job: Job) -> None:
        if job in self.young:
            self.young.remove(job)
        elif job in self.old:
            self.old.remove(job)
            if self.old:
                os.kill(self.old[0].pid, signal.SIGCONT)

    def _age(self) -> None:
        """Who compiles for long goes behind the others that do."""
        for job in [each for each in self.young if each.spent_s >= YOUNG_S]:
            self.young.remove(job)
            if len(self.old) > MAX_OLD:
                os.kill(job.pid, signal.SIGKILL)
                continue
            os.setpriority(os.PRIO_PROCESS, job.pid, OLD_NICE)
            if self.old:
                os.kill(job.pid, signal.SIGSTOP)
            self.old.append(job)


def _become_child(vocabulary: Vocabulary, engine: int, source: int, host: int) -> NoReturn:
    """Never returns. Every file but its own is closed: others' sockets end with others."""
    status = 1
    try:
        silent = os.open(os.devnull, os.O_RDWR)
        for standard in range(3):
            os.dup2(silent, standard)
        low = 3
        for mine in sorted((engine, source, host)):
            os.closerange(low, mine)
            low = mine + 1
        os.closerange(low, os.sysconf("SC_OPEN_MAX"))
        with open(source, "rb") as file:
            structure = Structure(*json.load(file))
        child.serve(vocabulary, structure, socket.socket(fileno=engine), host)
        status = 0
    finally:
        os._exit(status)


def main(control_fd: int) -> None:
    """Serve the engine at the other end of the control socket."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICE)
    described = json.load(sys.stdin)
    process = GrammarProcess(
        socket.socket(fileno=control_fd),
        Vocabulary(described["tokenizer"], described["end_ids"]),
    )
    try:
        process.run()
    finally:
        process.end()


if __name__ == "__main__":
    main(int(sys.argv[1]))
