"""The messages between the API process and the worker, and their bytes.

A message is a list of frames: the first is msgpack, the others are the raw bytes of the arrays the
first one refers to, so that megabytes of pixels are neither copied into a buffer nor parsed.

    frame 0   ["add", {id, prompt_ids, images: [{tensors: {"pixel_values": header}}]}]
              header = [1, "<f4", [1, 3, 336, 336]]: which frame, dtype, shape
    frame 1   1,354,752 bytes

Knows the values of `lookm.types` and nothing about sockets, processes or the engine. Never pickles.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from lookm import errors
from lookm.config import EngineConfig
from lookm.types import Array, EngineStats, ModelInfo, Request, TokenEvent
from server.logs import LogFormat
from server.worker.worker_errors import WireError

Frame = bytes | memoryview

DTYPES = frozenset(
    [
        *("float64", "float32", "float16", "int64", "int32", "int16", "int8"),
        *("uint64", "uint32", "uint16", "uint8", "bool"),
    ]
)

ERRORS: dict[str, type[errors.LookmError]] = {
    kind.__name__: kind
    for kind in (
        errors.LookmError,
        errors.PolicyError,
        errors.RequestError,
        errors.PromptTooLongError,
        errors.ModelError,
        errors.ConfigError,
        errors.QueueFullError,
    )
}


class Message(msgspec.Struct, frozen=True, array_like=True, tag=str.lower, eq=False):
    """Base of every message; the lower-case class name is its tag."""


class Start(Message, frozen=True):
    """API to worker, first and once: load this engine. `log_level` is `logging`'s number,
    `log_format` one of `server.logs`."""

    config: EngineConfig
    log_level: int
    log_format: LogFormat = "text"


class Add(Message, frozen=True):
    """API to worker: answer this request."""

    request: Request


class Together(Message, frozen=True):
    """API to worker: answer these. An array that several of them hold is sent once."""

    requests: tuple[Request, ...]


class Forget(Message, frozen=True):
    """API to worker: images that are not named again by their digest alone (`known_images`)."""

    digests: tuple[str, ...]


class Abort(Message, frozen=True):
    """API to worker: stop this request. Unknown and finished ids are ignored."""

    request_id: str


class Shutdown(Message, frozen=True):
    """API to worker: leave now, whatever is running."""


class Ready(Message, frozen=True):
    """Worker to API, once: the model is loaded."""

    info: ModelInfo
    stats: EngineStats


class Accepted(Message, frozen=True):
    """Worker to API: `Add` is queued; what follows of that request are events."""

    request_id: str


class Step(Message, frozen=True):
    """Worker to API, one per engine step."""

    events: tuple[TokenEvent, ...]
    stats: EngineStats


class Rejected(Message, frozen=True):
    """Worker to API: `Add` failed with a `LookmError`, then or a while after it; no event of that
    request follows.
    """

    request_id: str
    error: str
    message: str
    param: str | None


class Failed(Message, frozen=True):
    """Worker to API, its last message: why it ends. `error` is a class name; see `ERRORS`."""

    error: str
    message: str


Up = Start | Add | Together | Forget | Abort | Shutdown
Down = Ready | Accepted | Step | Rejected | Failed


class ArrayHeader(NamedTuple):
    """Where an array is (the index of its frame) and how to read it."""

    frame: int
    dtype: str
    shape: tuple[int, ...]


def joined(messages: Sequence[Up]) -> Iterator[Up]:
    """The messages in their order, requests that follow each other as one message."""
    for adding, group in itertools.groupby(messages, key=lambda each: isinstance(each, Add)):
        each = list(group)
        if adding and len(each) > 1:
            yield Together(tuple(add.request for add in each if isinstance(add, Add)))
        else:
            yield from each


def require_sendable(request: Request) -> None:
    """Raises `TypeError` for arrays that `encode` would refuse."""
    for image in request.images:
        for value in image.tensors.values():
            if value.dtype.name not in DTYPES:
                raise TypeError(f"an array of {value.dtype.name} cannot be sent to the worker")


def encode(message: Up | Down) -> list[Frame]:
    """The frames of a message. Array frames are views: they keep the arrays alive until sent."""
    frames: list[Frame] = [b""]
    headers: dict[int, ArrayHeader] = {}

    def header(value: object) -> ArrayHeader:
        if not isinstance(value, np.ndarray) or value.dtype.name not in DTYPES:
            raise TypeError(f"{type(value).__name__} cannot be sent to the worker")
        if id(value) not in headers:
            flat = np.ascontiguousarray(value).reshape(-1)
            frames.append(flat.view(np.uint8).data if flat.size else b"")
            headers[id(value)] = ArrayHeader(len(frames) - 1, value.dtype.str, value.shape)
        return headers[id(value)]

    frames[0] = msgspec.msgpack.encode(message, enc_hook=header)
    return frames


def decode_up(frames: Sequence[Frame]) -> Up:
    """What the API sent. Arrays are read-only views of the frames. Raises `WireError`."""
    message: Up = _decode(frames, Up)
    return message


def decode_down(frames: Sequence[Frame]) -> Down:
    """What the worker sent. Raises `WireError`."""
    message: Down = _decode(frames, Down)
    return message


def _decode(frames: Sequence[Frame], kind: Any) -> Any:
    if not frames:
        raise WireError("no frames")

    def array(_type: type, value: object) -> Array:
        return _read_array(frames, msgspec.convert(value, ArrayHeader, strict=True))

    try:
        return msgspec.msgpack.decode(frames[0], type=kind, dec_hook=array)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise WireError(f"not a message of ours: {error}") from error


def _read_array(frames: Sequence[Frame], header: ArrayHeader) -> Array:
    if not 0 < header.frame < len(frames):
        raise WireError(f"array frame {header.frame} of {len(frames)} frames")
    try:
        dtype = np.dtype(header.dtype)
    except TypeError as error:
        raise WireError("unknown dtype") from error
    if dtype.name not in DTYPES or any(side < 0 for side in header.shape):
        raise WireError(f"dtype {dtype.name} or shape {header.shape} is not allowed")
    buffer = frames[header.frame]
    if math.prod(header.shape) * dtype.itemsize != len(buffer):
        raise WireError(f"{len(buffer)} bytes for shape {header.shape} of {dtype.name}")
    array: Array = np.ndarray(header.shape, dtype, buffer)
    array.flags.writeable = False
    return array


def rejection(request_id: str, error: errors.LookmError) -> Rejected:
    """`error` as a message; a subclass the table lacks travels as its nearest listed base."""
    return Rejected(request_id, error_name(error), str(error), error.param)


def late_rejection(event: TokenEvent) -> Rejected:
    """The event of a request that was refused after it was added."""
    assert event.refused is not None
    return Rejected(event.request_id, event.refused, event.error or "", event.param)


def error_name(error: errors.LookmError) -> str:
    """The name under which `error` crosses the wire."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in ERRORS)


def error_from(name: str, message: str, param: str | None = None) -> errors.LookmError | None:
    """The `LookmError` a name stands for, or None where the worker failed with something else."""
    kind = ERRORS.get(name)
    return None if kind is None else kind(message, param=param)
