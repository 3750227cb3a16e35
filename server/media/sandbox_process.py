"""The process in which untrusted bytes are decoded: one job after the other, until its input ends.

Run as `python -m server.media.sandbox_process`, with a socket as standard input. Before each job it
asks the system to bound its own memory and processor time, so that whatever a decoder does ends
here. A job is one row of `JOBS`, or of `EXTRAS` where it needs a package that may not be there:
bytes and options in, facts and bytes out; or an iterator of such, each sent before the next is
made.
"""

import contextlib
import ctypes
import importlib
import os
import resource
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from server.media import pdf
from server.media.config import MediaConfig
from server.media.decode import decode, silence_decoders
from server.media.frames import receive, send
from server.media.media_error import MediaError

Facts = Mapping[str, Any]
Answer = tuple[Facts, bytes]
Job = Callable[[bytearray, Facts], Answer | Iterator[Answer]]

SLACK_BYTES = 256 * 2**20  # of address space, beside what a job is expected to take
TRIM_BYTES = 16 * 2**20
NICENESS = 5  # who asks something small is answered first


def picture(data: bytearray, options: Facts) -> Answer:
    """One image: its RGB pixels, its size as kept and as sent."""
    decoded = decode(bytes(data), MediaConfig(**options))
    size = {"kept": decoded.image.size, "width": decoded.width, "height": decoded.height}
    return size, decoded.image.tobytes()


JOBS: Mapping[str, Job] = {"picture": picture, "document": pdf.document, "page": pdf.page}
EXTRAS = {
    "video_look": ("server.media.video_frames", "look"),
    "video_frames": ("server.media.video_frames", "frames"),
}


def main() -> None:
    """Serve the socket at standard input."""
    silence_decoders()
    os.nice(NICENESS)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)
    with socket.socket(fileno=os.dup(sys.stdin.fileno())) as connection:
        while (message := receive(connection)) is not None:
            order, data = message
            for facts, result in _answers(order, data):
                send(connection, facts, result)
            if order["cost_bytes"] > TRIM_BYTES:
                del message, data
                trim(0)


def _answers(order: Facts, data: bytearray) -> Iterator[Answer]:
    """One, or many: each but the last then says that there is `more`."""
    _bound_time(order["cpu_s"])
    job = _job(order["job"])
    _bound_memory(order["cost_bytes"] + 2 * len(data))
    try:
        result = job(data, order["options"])
        if isinstance(result, tuple):
            yield result
            return
        for facts, each in result:
            yield {**facts, "more": True}, each
        yield {}, b""
    except MediaError as error:
        yield {"code": error.code, "message": error.message}, b""
    except MemoryError:
        yield {"code": "image_too_large", "message": "It takes too much memory to decode."}, b""


def _job(name: str) -> Job:
    """What an extra brings is imported when it is first needed; a process has room for it."""
    if name in JOBS:
        return JOBS[name]
    module, function = EXTRAS[name]
    job: Job = getattr(importlib.import_module(module), function)
    return job


def _bound_time(cpu_s: int) -> None:
    """For the next job: past it the system kills."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _lower(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + cpu_s)


def _bound_memory(memory_bytes: int) -> None:
    """For the next job: past it allocations fail."""
    with contextlib.suppress(OSError):  # only Linux says what is held, and bounds it
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        held_bytes = pages * resource.getpagesize()
        _lower(resource.RLIMIT_AS, held_bytes + memory_bytes + SLACK_BYTES)


def _lower(kind: int, limit: int) -> None:
    """Set a soft limit, within the hard one that the operator may have set."""
    _, hard = resource.getrlimit(kind)
    soft = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(kind, (soft, hard))


if __name__ == "__main__":
    main()
