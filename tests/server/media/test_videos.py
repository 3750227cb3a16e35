"""Videos in every container become frames with their times; whatever is wrong with one is a 400."""

import asyncio
import hashlib
import io
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import httpx
import pytest
from PIL import Image

from server.media import LoadedImage, MediaError, MediaLoader, Video
from server.media.config import VideoConfig
from tests.server.media.clips import COLOURS, KINDS, clip, colour, picture, turned, url
from tests.server.media.conftest import Body, Loading, encode
from tests.server.requests import data_url

pytestmark = [pytest.mark.anyio, pytest.mark.extras]


async def same(image: LoadedImage) -> LoadedImage:
    return image


async def frames(
    load: MediaLoader, data: bytes, fps: float | None = None, max_frames: int | None = None
) -> Sequence[LoadedImage]:
    (found,) = await load.load_all([Video(url(data), fps, max_frames)], ["here"], same)
    return found


async def refusal(load: MediaLoader, data: bytes, **options: Any) -> MediaError:
    with pytest.raises(MediaError) as refused:
        await frames(load, data, **options)
    assert refused.value.param == "here"
    assert load.held_bytes == 0
    return refused.value


@pytest.mark.parametrize("kind", KINDS)
async def test_every_container_gives_the_frames_at_their_times(loading: Loading, kind: str) -> None:
    data = clip(kind)
    async with loading() as load:
        found = await frames(load, data)
        assert [each.label for each in found] == [f"0:0{n}.0" for n in range(6)]
        assert [colour(each.image) for each in found] == [COLOURS[2 * n % 6] for n in range(6)]
        assert {(each.image.size, each.width, each.height) for each in found} == {
            ((64, 48), 64, 48)
        }
        assert len({each.digest for each in found}) == 6
        slower = await frames(load, data, fps=0.5)
        assert [each.label for each in slower] == ["0:00.0", "0:02.0", "0:04.0"]
        assert [each.digest for each in slower] == [each.digest for each in found[::2]]
        few = await frames(load, data, fps=2, max_frames=3)
        assert [each.label for each in few] == ["0:00.0", "0:02.5", "0:05.5"]


@pytest.mark.parametrize("kind", ["mp4", "webm", "mkv"])
async def test_a_variable_frame_rate_is_followed(loading: Loading, kind: str) -> None:
    times_ms = [0, 40, 80, 2500, 2540, 9000, 9100]
    async with loading() as load:
        found = await frames(load, clip(kind, times_ms))
    shown = [(each.label, colour(each.image)) for each in found]
    assert shown == [
        ("0:00.0", COLOURS[0]),
        ("0:00.1", COLOURS[2]),
        ("0:02.5", COLOURS[4]),
        ("0:09.0", COLOURS[5]),
    ]


@pytest.mark.parametrize("gop", [1, 4, 100])
async def test_frames_are_found_wherever_key_frames_are(loading: Loading, gop: int) -> None:
    data = clip("mp4", range(0, 12_000, 100), gop=gop)
    async with loading() as load:
        found = await frames(load, data, fps=10, max_frames=9)
        assert [colour(each.image) for each in found] == [
            COLOURS[int(float((each.label or "")[2:]) * 10 + 0.5) % 6] for each in found
        ]
        assert len(found) == 9


CORNERS = Image.new("RGB", (64, 48), "red")
CORNERS.paste("blue", (32, 0, 64, 48))
CORNERS.paste("lime", (0, 24, 32, 48))  # red, blue above lime, blue


@pytest.mark.parametrize(
    ("matrix", "size", "corners"),
    [
        ((1, 0, 0, 1), (64, 48), "red blue lime blue"),
        ((0, 1, -1, 0), (48, 64), "lime red blue blue"),  # a phone held upright
        ((-1, 0, 0, -1), (64, 48), "blue lime blue red"),
        ((0, -1, 1, 0), (48, 64), "blue blue red lime"),
        ((-1, 0, 0, 1), (64, 48), "blue red blue lime"),
    ],
)
async def test_a_video_is_turned_as_its_camera_was_held(
    loading: Loading, matrix: tuple[int, int, int, int], size: tuple[int, int], corners: str
) -> None:
    data = turned(clip("mp4", [0, 500], [CORNERS] * 2), *matrix)
    async with loading() as load:
        (first, *_) = await frames(load, data)
    assert first.image.size == size
    places = [(x, y) for y in (0.2, 0.8) for x in (0.2, 0.8)]
    assert [colour(first.image, where) for where in places] == corners.split()


async def test_pixels_that_are_not_square_are_made_so(loading: Loading) -> None:
    async with loading() as load:
        (first, *_) = await frames(load, clip("mkv", aspect=Fraction(2)))
    assert first.image.size == (128, 48)


async def test_large_frames_are_scaled_down(loading: Loading) -> None:
    data = clip("mp4", [0, 500], [picture(0, (640, 360))] * 2)
    async with loading(video=VideoConfig(frame_pixels=10_000)) as load:
        (first, *_) = await frames(load, data)
    assert (first.width, first.height) == (640, 360)
    assert first.image.size == (133, 75)


async def test_sound_is_not_heard(loading: Loading) -> None:
    async with loading() as load:
        assert len(await frames(load, clip("mp4", with_sound=True))) == 6
        only_sound = await refusal(load, _only_sound())
    assert "no picture" in only_sound.message


def _only_sound() -> bytes:
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        stream = output.add_stream("mp3", rate=44100)
        silence = av.AudioFrame(format="fltp", layout="stereo", samples=1152)
        silence.sample_rate = 44100
        output.mux(stream.encode(silence))
        output.mux(stream.encode(None))
    return buffer.getvalue()


async def test_a_known_video_is_not_decoded_and_its_digest_stands_for_it(
    loading: Loading, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, kept = clip(), {}

    async def use(image: LoadedImage) -> str:
        kept[image.digest] = f"{image.label} {colour(image.image)}"
        return kept[image.digest]

    def known(digest: str, *_: str | None) -> str | None:
        return kept.get(digest)

    async with loading() as load:
        (first,) = await load.load_all([Video(url(data))], [None], use, known)
        del kept[[*kept][2]]
        ran = _watched(load, monkeypatch)
        (again,) = await load.load_all([Video(url(data))], [None], use, known)
        assert again == first
        assert ran == [1]
        named = Video("sha256:" + hashlib.sha256(data).hexdigest())
        assert await load.load_all([named], [None], use, known) == [first]
        assert len(ran) == 1
        kept.clear()
        with pytest.raises(MediaError, match="send it again") as forgotten:
            await load.load_all([named], ["here"], use, known)
        assert (forgotten.value.code, forgotten.value.param) == ("video_not_found", "here")


def _watched(load: MediaLoader, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many frames each job decodes from now on."""
    ran: list[int] = []
    own = load._sandbox.each

    def each(order: Any, data: bytes) -> Any:
        ran.append(len(order.options["times"]))
        return own(order, data)

    monkeypatch.setattr(load._sandbox, "each", each)
    return ran


@pytest.mark.parametrize("kind", KINDS)
async def test_a_video_that_was_cut_off_is_refused(loading: Loading, kind: str) -> None:
    data = clip(kind)
    async with loading() as load:
        for cut in range(1, len(data), len(data) // 8):
            error = await refusal(load, data[:cut])
            assert error.code in ("invalid_video", "unsupported_video")
        assert len(await frames(load, data)) == 6


async def test_whatever_is_wrong_inside_is_a_refusal_or_frames(loading: Loading) -> None:
    async with loading() as load:
        for kind in KINDS:
            data = clip(kind)
            for n in range(24):
                broken = bytearray(data)
                for k in range(1 + n % 5):
                    broken[(n * 7919 + k * 104_729) % len(data)] ^= 1 + (n * 31 + k) % 255
                found, *_ = await asyncio.gather(
                    frames(load, bytes(broken)), return_exceptions=True
                )
                if isinstance(found, MediaError):
                    assert ("video" in found.code, found.param) == (True, "here")
                else:
                    assert isinstance(found, tuple)
                    assert found
            assert len(await frames(load, data)) == 6
        assert load.held_bytes == 0


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_pixels": 64 * 48 - 1}, "64 x 48 pixels; 3071 are allowed"),
        ({"max_s": 5.0}, "lasts 6 s; 5 are allowed"),
        ({"max_packets": 11}, "more than 11 frames"),
        ({"max_bytes": 1000}, "more than 1000 bytes"),
        ({"limit_s": 0.0001}, "takes too long"),
    ],
)
async def test_a_limit_is_named_with_what_is_allowed(
    loading: Loading, limits: dict[str, Any], message: str
) -> None:
    async with loading(video=VideoConfig(**limits)) as load:
        error = await refusal(load, clip())
    assert (error.code, message in error.message) == ("video_too_large", True), error.message


async def test_frames_count_as_images_before_one_is_decoded(
    loading: Loading, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with loading(max_request_images=5) as load:
        ran = _watched(load, monkeypatch)
        error = await refusal(load, clip(), max_frames=6)
        assert "6 images or more" in error.message
        assert not ran
        assert len(await frames(load, clip())) == 5  # by itself it takes no more
        both = [Video(url(clip()), max_frames=3), Video(url(clip()), max_frames=2)]
        assert len(await load.load_all(both, [None] * 2, same)) == 2
        with pytest.raises(MediaError, match="images or more"):
            await load.load_all([*both, data_url(encode(picture(0)))], [None] * 3, same)


async def test_kept_pixels_and_memory_are_bounded(loading: Loading) -> None:
    async with loading(max_request_pixels=6 * 64 * 48 - 1) as load:
        assert "pixels together" in (await refusal(load, clip())).message
    async with loading(memory_bytes=100 * 2**20) as load:
        assert "may take" in (await refusal(load, clip())).message


async def test_a_video_that_grows_on_its_way_is_scaled_and_a_bomb_is_refused(
    loading: Loading,
) -> None:
    data = _growing((64, 48), (640, 480))
    async with loading() as load:
        found = await frames(load, data, fps=10)
        assert [each.image.size for each in found] == [(64, 48)] * len(found)
    async with loading(video=VideoConfig(max_pixels=64 * 48)) as load:
        error = await refusal(load, data, fps=10)
        assert "640 x 480 pixels; 3072 are allowed" in error.message
        assert len(await frames(load, clip())) == 6


def _growing(small: tuple[int, int], large: tuple[int, int]) -> bytes:
    """A WebM whose frames are small, then large."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="webm") as output:
        stream: Any = output.add_stream("libvpx", rate=10)
        stream.width, stream.height = small
        for size, first in ((small, 0), (large, 3)):
            encoder: Any = av.CodecContext.create("libvpx", "w")
            encoder.width, encoder.height = size
            encoder.pix_fmt, encoder.time_base = "yuv420p", Fraction(1, 10)
            encoder.options = {"deadline": "realtime", "cpu-used": "8"}
            for n in range(first, first + 2):
                frame: Any = av.VideoFrame(*size, "yuv420p")
                for plane in frame.planes:
                    plane.update(bytes(plane.buffer_size))
                frame.pts, frame.time_base = n, Fraction(1, 10)
                for packet in (
                    *encoder.encode(frame),
                    *(encoder.encode(None) if n > first else ()),
                ):
                    packet.stream = stream
                    output.mux(packet)
    return buffer.getvalue()


async def test_a_download_without_an_end_is_cut_off(loading: Loading) -> None:
    body = Body(b"\0" * 2**16, times=10**9)

    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=body)

    async with loading(handler, video=VideoConfig(max_bytes=2**20)) as load:
        with pytest.raises(MediaError, match="1048576") as refused:
            await load.load_all([Video("https://a.example/endless.mp4")], ["here"], same)
        assert refused.value.code == "video_too_large"
        assert body.closed
        assert body.produced < 2**21
        assert load.held_bytes == 0


async def test_it_is_fetched_as_images_are(loading: Loading) -> None:
    data = clip()

    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=data)

    async with loading(handler, names={"inside.example": ["10.0.0.1"]}) as load:
        (found,) = await load.load_all([Video("https://a.example/a.mp4")], [None], same)
        assert len(found) == 6
        assert found[0].fetch_s > 0
        assert [each.fetch_s for each in found[1:]] == [0] * 5
        for refused_url in ("http://127.0.0.1/a.mp4", "https://inside.example/", "file:///a.mp4"):
            with pytest.raises(MediaError) as refused:
                await load.load_all([Video(refused_url)], [None], same)
            assert refused.value.code == "invalid_video_url"


async def test_pictures_do_not_wait_for_a_video(loading: Loading) -> None:
    begun, going = asyncio.Event(), asyncio.Event()

    async def slow(image: LoadedImage) -> int:
        begun.set()
        await going.wait()
        return 1

    async with loading(max_decodes=1) as load:
        videos = [
            asyncio.create_task(load.load_all([Video(url(clip()))], [None], slow)) for _ in range(3)
        ]
        await begun.wait()
        picked = await asyncio.wait_for(load.load(data_url(encode(picture(0)))), 30)
        assert colour(picked.image) == "red"
        going.set()
        assert await asyncio.gather(*videos) == [[(1,) * 6]] * 3
        assert load.held_bytes == 0


async def test_who_leaves_ends_the_decoding(loading: Loading) -> None:
    begun = asyncio.Event()

    async def slow(image: LoadedImage) -> None:
        begun.set()
        await asyncio.Event().wait()

    async with loading(max_decodes=1) as load:
        work = asyncio.create_task(load.load_all([Video(url(clip()))], [None], slow))
        await begun.wait()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert load.held_bytes == 0
        assert len(await frames(load, clip())) == 6


async def test_a_video_costs_one_process_and_not_one_each(loading: Loading) -> None:
    async with loading() as load:
        for _ in range(3):
            await frames(load, clip())
        assert load._sandbox._idle.qsize() == 1
