"""Videos made here, with PyAV: each frame is one colour, so that it says which one it is."""

import base64
import io
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from PIL import Image

COLOURS = ("red", "lime", "blue", "yellow", "magenta", "cyan")
MS = Fraction(1, 1000)
HALF_S = Fraction(1, 2)  # AVI counts frames: its times are multiples of one
# A container, a codec that is usual in it, and the unit of its times.
KINDS = {
    "mp4": ("mp4", "libx264", MS),
    "mov": ("mov", "mpeg4", MS),
    "webm": ("webm", "libvpx-vp9", MS),
    "mkv": ("matroska", "libx264", MS),
    "avi": ("avi", "mpeg4", HALF_S),
}


def picture(number: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """The frame of this number."""
    return Image.new("RGB", size, COLOURS[number % len(COLOURS)])


def clip(
    kind: str = "mp4",
    times_ms: Sequence[int] = range(0, 6000, 500),
    pictures: Sequence[Image.Image] | None = None,
    *,
    with_sound: bool = False,
    aspect: Fraction | None = None,
    gop: int = 12,
) -> bytes:
    """A video that shows the pictures at these times."""
    import av

    container, codec, unit = KINDS[kind]
    pictures = pictures or [picture(n) for n in range(len(times_ms))]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream: Any = output.add_stream(codec, rate=int(1 / unit) if kind == "avi" else 30)
        stream.width, stream.height = pictures[0].size
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = unit
        stream.gop_size = gop
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        sound = output.add_stream("mp3", rate=44100) if with_sound else None
        for time_ms, image in zip(times_ms, pictures, strict=True):
            frame = av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = int(Fraction(time_ms, 1000) / unit), unit
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if sound is not None:
            silence: Any = av.AudioFrame(format="fltp", layout="stereo", samples=1152)
            silence.sample_rate = 44100
            for plane in silence.planes:
                plane.update(bytes(plane.buffer_size))
            output.mux(sound.encode(silence))
            output.mux(sound.encode(None))
    return buffer.getvalue()


def turned(mp4: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """With this display matrix in the header of its track, as phones write it."""
    unit = 1 << 16
    at = mp4.index(b"tkhd") + 4 + 40  # version 0: 40 bytes come before the matrix
    matrix = (a * unit, b * unit, 0, c * unit, d * unit, 0, 0, 0, 1 << 30)
    written = b"".join(each.to_bytes(4, "big", signed=True) for each in matrix)
    return mp4[:at] + written + mp4[at + len(written) :]


def url(data: bytes) -> str:
    """A data: URL of a video."""
    return "data:video/mp4;base64," + base64.b64encode(data).decode()


def colour(image: Image.Image, where: tuple[float, float] = (0.5, 0.5)) -> str:
    """The name of the colour there, by what it is nearest to."""
    pixel = image.getpixel((int(image.width * where[0]), int(image.height * where[1])))
    assert isinstance(pixel, tuple)
    return min(COLOURS, key=lambda name: _distance(Image.new("RGB", (1, 1), name), pixel))


def _distance(image: Image.Image, pixel: Sequence[float]) -> float:
    named = image.getpixel((0, 0))
    assert isinstance(named, tuple)
    return sum(abs(a - b) for a, b in zip(named, pixel, strict=True))
