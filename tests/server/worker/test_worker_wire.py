import dataclasses
import json

import msgspec
import numpy as np
import pytest

from lookm import errors
from lookm.config import EngineConfig
from lookm.types import (
    CachePolicy,
    CacheReport,
    EngineStats,
    ImageInput,
    ModelInfo,
    Request,
    Sampling,
    Timing,
    TokenEvent,
)
from server.worker import wire
from server.worker.worker_errors import WireError

STATS = EngineStats(1, 2, 3, 4, 5, prompt_tokens_total=6, decode_s=0.5)
INFO = ModelInfo("m", 4096, 1024, 16, 2**20, 2, "float32", "cpu")
POLICY = CachePolicy("look-m", keep=0.2, merge="pivot", text="prior")
REPORT = CacheReport(POLICY, 100, 80, 20, 80, 80, 20480, 102400, True)
EVENTS = (
    TokenEvent("a", 7, "é", 1, cache=REPORT),
    TokenEvent("b", None, "", 3, "error", REPORT, Timing(0.1, 0.2, 0.3, 0.4, 0.5), "why"),
)

UP = [
    wire.Start(EngineConfig(model="x", threads=2, kv_cache_bytes=1), 20),
    wire.Forget(("d1", "d2")),
    wire.Abort("a"),
    wire.Shutdown(),
]
DOWN = [
    wire.Ready(INFO, STATS),
    wire.Accepted("a"),
    wire.Step(EVENTS, STATS),
    wire.Step((), STATS),
    wire.Rejected("a", "QueueFullError", "later", None),
    wire.Failed("RuntimeError", "boom"),
]


def as_received(message: wire.Up | wire.Down) -> list[wire.Frame]:
    return [bytes(frame) for frame in wire.encode(message)]


def round_trip(request: Request) -> Request:
    message = wire.decode_up(as_received(wire.Add(request)))
    assert isinstance(message, wire.Add)
    return message.request


def fields(message: wire.Up | wire.Down) -> dict[str, object]:
    return {name: getattr(message, name) for name in message.__struct_fields__}


@pytest.mark.parametrize("message", UP, ids=lambda m: type(m).__name__)
def test_every_message_to_the_worker_survives_the_wire(message: wire.Up) -> None:
    received = wire.decode_up(as_received(message))
    assert type(received) is type(message)
    assert fields(received) == fields(message)


@pytest.mark.parametrize("message", DOWN, ids=lambda m: type(m).__name__)
def test_every_message_to_the_api_survives_the_wire(message: wire.Down) -> None:
    received = wire.decode_down(as_received(message))
    assert type(received) is type(message)
    assert fields(received) == fields(message)


def test_every_message_type_is_tested_here() -> None:
    tested = {type(message) for message in (*UP, *DOWN)} | {wire.Add, wire.Together}
    assert tested == set((wire.Up | wire.Down).__args__)


def test_request_without_images_survives_the_wire() -> None:
    request = Request(
        "id", tuple(range(3000)), policy=POLICY, sampling=Sampling(5, 0.7, stop=("x",))
    )
    received = round_trip(request)
    for field in dataclasses.fields(Request):
        assert getattr(received, field.name) == getattr(request, field.name)


@pytest.mark.parametrize("dtype", sorted(wire.DTYPES))
def test_arrays_of_every_dtype_and_shape_survive_the_wire(dtype: str) -> None:
    tensors = {
        "plain": np.arange(24).reshape(1, 2, 3, 4).astype(dtype),
        "strided": np.arange(24).reshape(4, 6).astype(dtype)[::2, ::3],
        "scalar": np.asarray(1).astype(dtype),
        "empty": np.zeros((0, 3), dtype),
        "big_endian": np.arange(5).astype(np.dtype(dtype).newbyteorder(">")),
    }
    image = round_trip(Request("a", (1,), (ImageInput("digest", tensors, 9),))).images[0]
    assert (image.digest, image.num_tokens) == ("digest", 9)
    assert set(image.tensors) == set(tensors)
    for name, sent in tensors.items():
        got = image.tensors[name]
        assert (got.dtype, got.shape) == (sent.dtype, sent.shape)
        np.testing.assert_array_equal(got, sent)


def test_received_arrays_are_read_only_views_of_their_frame() -> None:
    pixels = np.ones((1, 3, 8, 8), np.float32)
    frames = as_received(wire.Add(Request("a", (1,), (ImageInput("d", {"p": pixels}, 1),))))
    message = wire.decode_up(frames)
    assert isinstance(message, wire.Add)
    got = message.request.images[0].tensors["p"]
    assert not got.flags.writeable
    assert np.shares_memory(got, np.frombuffer(frames[1], np.uint8))


def test_sent_arrays_are_not_copied() -> None:
    pixels = np.ones((1, 3, 8, 8), np.float32)
    frames = wire.encode(wire.Add(Request("a", (1,), (ImageInput("d", {"p": pixels}, 1),))))
    assert np.shares_memory(pixels, np.frombuffer(frames[1], np.uint8))


def test_arrays_of_objects_are_refused_before_they_are_sent() -> None:
    image = ImageInput("d", {"p": np.array([object()])}, 1)
    request = Request("a", (1,), (image,))
    for refuses in (wire.require_sendable, lambda request: wire.encode(wire.Add(request))):
        with pytest.raises(TypeError, match="cannot be sent"):
            refuses(request)


def test_requests_that_share_images_send_them_once() -> None:
    images = tuple(
        ImageInput(str(n), {"p": np.full((3, 8, 8), n, np.float32)}, 1) for n in range(2)
    )
    requests = [Request(f"a-{n}", (1,), images) for n in range(5)]
    (together,) = wire.joined([wire.Add(request) for request in requests])
    frames = as_received(together)
    assert [len(frame) for frame in frames[1:]] == [768, 768]
    received = wire.decode_up(frames)
    assert isinstance(received, wire.Together)
    assert [request.id for request in received.requests] == [f"a-{n}" for n in range(5)]
    for request in received.requests:
        for sent, got in zip(images, request.images, strict=True):
            np.testing.assert_array_equal(got.tensors["p"], sent.tensors["p"])


def test_joining_keeps_the_order_of_messages() -> None:
    a, b, c = (wire.Add(Request(name, (1,))) for name in "abc")
    abort = wire.Abort("a")
    first, second, third = wire.joined([a, b, abort, c])
    assert isinstance(first, wire.Together)
    assert (first.requests, second, third) == ((a.request, b.request), abort, c)


def test_messages_that_are_not_ours_are_refused() -> None:
    pack = msgspec.msgpack.encode
    good = as_received(wire.Abort("a"))[0]
    for frames in (
        [],
        [b""],
        [b"\xc1"],
        [good[:-1]],
        [pack(["unknown", 1])],
        [pack(["abort"])],
        [pack(["abort", 5])],
        [pack({"type": "abort"})],
        [json.dumps(["abort", "a"]).encode()],
        [b"\x91" * 100_000],
    ):
        with pytest.raises(WireError):
            wire.decode_up(frames)
    with pytest.raises(WireError):
        wire.decode_down([good])


@pytest.mark.parametrize(
    "header",
    [
        [0, "<f4", [4]],
        [2, "<f4", [4]],
        [-1, "<f4", [4]],
        [1, "<f4", [5]],
        [1, "<f4", [-4]],
        [1, "<f4", [-2, -2]],
        [1, "|O", [2]],
        [1, "<U4", [1]],
        [1, "<m8", [2]],
        [1, "nonsense", [4]],
        [1, "<f4", [2**40, 2**40]],
        [1, "<f4", "4"],
        ["1", "<f4", [4]],
        None,
        [],
    ],
    ids=str,
)
def test_array_headers_that_do_not_fit_their_frame_are_refused(header: object) -> None:
    pixels = np.zeros(4, np.float32)
    frames = as_received(wire.Add(Request("a", (1,), (ImageInput("d", {"p": pixels}, 1),))))
    raw = msgspec.msgpack.decode(frames[0])
    raw[1]["images"][0]["tensors"]["p"] = header
    with pytest.raises(WireError):
        wire.decode_up([msgspec.msgpack.encode(raw), *frames[1:]])


def every_error() -> list[type[errors.LookmError]]:
    found, todo = [], [errors.LookmError]
    while todo:
        kind = todo.pop()
        found.append(kind)
        todo += kind.__subclasses__()
    return [kind for kind in found if kind.__module__ == "lookm.errors"]


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_every_lookm_error_is_raised_again_as_itself(kind: type[errors.LookmError]) -> None:
    sent = wire.rejection("a", kind("the fix", param="messages[0]"))
    received = wire.error_from(sent.error, sent.message, sent.param)
    assert type(received) is kind
    assert (str(received), received.param) == ("the fix", "messages[0]")


def test_a_subclass_the_table_lacks_travels_as_its_base() -> None:
    class OddError(errors.RequestError):
        pass

    assert wire.error_name(OddError("x")) == "RequestError"
    assert wire.error_from("ValueError", "x") is None
