"""From a video's bytes to frames of it, with PyAV (FFmpeg). Runs in a process of the `sandbox`.

    look      demux all packets, decode none -> times of all frames -> those to decode
    frames    demux again, decode from the key frame before each frame that is wanted -> RGB,
              scaled -> turned upright

FFmpeg is told the container and reads from memory alone; streams of codecs that nobody sends are
not opened. One thread, so that the limits of the process bound what it does. Whatever it raises
becomes a `MediaError`.
"""

import contextlib
import io
import struct
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import av
from PIL import Image

from server.media.decode import upright
from server.media.media_error import MediaError
from server.media.video_times import sample

CODECS = frozenset(
    (
        *("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mjpeg", "mpeg1video", "mpeg2video"),
        *("h263", "msmpeg4v3", "prores", "theora"),
    )
)
SEND = "Send H.264, HEVC, VP8, VP9, AV1, MPEG-4 or Motion JPEG."
UNKNOWN_BITS = 64  # of a pixel whose format is not known before it is decoded
UNSPECIFIED, ITU709 = 2, 1
HD_HEIGHT = 720  # from here on players take unspecified colours for BT.709
# Signs of a, b, c, d of a display matrix: x' = a x + c y, y' = b x + d y; as EXIF orientation.
ORIENTATIONS = {
    (1, 0, 0, 1): 1,
    (-1, 0, 0, 1): 2,
    (-1, 0, 0, -1): 3,
    (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5,
    (0, 1, -1, 0): 6,
    (0, -1, -1, 0): 7,
    (0, -1, 1, 0): 8,
}

Facts = Mapping[str, Any]


def look(data: bytearray, options: Facts) -> tuple[Facts, bytes]:
    """Which frames there are to decode: `frames` are pairs of a time in the stream's units and one
    in seconds after the first frame. Raises `MediaError`."""
    with _opened(data, options) as stream:
        width, height = _checked_size(stream, options)
        packets = _packets(stream, options)
        times = sorted({time for time, _ in _shown(packets)})
        if not times:
            raise _damaged()
        seconds = [float((time - times[0]) * stream.time_base) for time in times]
        if seconds[-1] > options["max_s"]:
            raise _too_large(
                f"The video lasts {seconds[-1]:.0f} s; {options['max_s']:.0f} are allowed. Cut it."
            )
        sampled = sample(seconds, options["fps"], options["max_frames"])
        shown = _shown_size(width, height, stream)
        codec = stream.codec_context
        facts = {
            "container": options["container"],
            "size": shown,
            "kept": fitted(*shown, options["frame_pixels"]),
            "stored_pixels": width * height,
            "bits_per_pixel": codec.format.padded_bits_per_pixel if codec.format else UNKNOWN_BITS,
            "frames": [(times[n], seconds[n]) for n in sampled],
        }
    return facts, b""


def frames(data: bytearray, options: Facts) -> Iterator[tuple[Facts, bytes]]:
    """The frames that are wanted, by their times in the stream's units, in that order."""
    with _opened(data, options) as stream:
        walk = _Walk(stream.codec_context, _packets(stream, options))
        for time in options["times"]:
            frame = walk.to(time)
            _check_pixels(frame.width, frame.height, options)  # it may grow on its way
            image = _picture(frame, tuple(options["kept"]))
            yield {"kept": image.size}, image.tobytes()


def fitted(width: int, height: int, max_pixels: int) -> tuple[int, int]:
    """The size of a frame that has no more pixels than that, in the same shape."""
    scale = min(1.0, (max_pixels / (width * height)) ** 0.5)
    return max(1, int(width * scale)), max(1, int(height * scale))


class _Walk:
    """Decodes what is needed to come to one frame after another, later and later."""

    def __init__(self, codec: Any, packets: Sequence[Any]) -> None:
        self._codec = codec
        self._packets = packets
        self._starts: dict[int, int] = {}  # by time, the key frame from which it can be decoded
        self._ready: deque[Any] = deque()
        self._last: Any = None
        self._next = 0
        start = 0
        for n, packet in enumerate(packets):
            start = n if packet.is_keyframe else start
            self._starts.setdefault(_time(packet), start)

    def to(self, time: int) -> Any:
        """The frame that is shown at this time. Raises `MediaError` where there is none."""
        if self._starts[time] > self._next:
            self._codec.flush_buffers()
            self._ready.clear()
            self._last, self._next = None, self._starts[time]
        while (frame := self._decoded()) is not None:
            if frame.pts is not None and frame.pts > time and self._last is not None:
                self._ready.appendleft(frame)
                break
            self._last = frame
            if frame.pts is not None and frame.pts >= time:
                break
        if self._last is None:
            raise _damaged()
        return self._last

    def _decoded(self) -> Any:
        """The next frame in the order in which they are shown; None behind the last one."""
        while not self._ready and self._next <= len(self._packets):
            at_end = self._next == len(self._packets)
            packet = None if at_end else self._packets[self._next]
            self._next += 1
            self._ready.extend(self._codec.decode(packet))
        return self._ready.popleft() if self._ready else None


@contextlib.contextmanager
def _opened(data: bytearray, options: Facts) -> Iterator[Any]:
    """The video stream. What is raised inside becomes a `MediaError`, too."""
    try:
        with av.open(io.BytesIO(data), format=options["container"]) as container:
            stream = _stream(container)
            stream.codec_context.thread_count = 1
            yield stream
    except (MediaError, MemoryError):
        raise
    except Exception as error:
        raise _damaged() from error


def _stream(container: Any) -> Any:
    """The first that is no cover picture."""
    cover = av.stream.Disposition.attached_pic
    streams = [each for each in container.streams.video if not each.disposition & cover]
    if not streams:
        raise MediaError("invalid_video", "The file has no picture in it: it is no video.")
    codec = streams[0].codec_context
    if codec is None or codec.codec.canonical_name not in CODECS:
        raise MediaError("unsupported_video", f"The video's codec is not supported. {SEND}")
    return streams[0]


def _checked_size(stream: Any, options: Facts) -> tuple[int, int]:
    """As the frames are stored. Raises `MediaError`."""
    width, height = stream.codec_context.width, stream.codec_context.height
    if width < 1 or height < 1:
        raise _damaged()
    _check_pixels(width, height, options)
    shown_width, shown_height = _shown_size(width, height, stream)
    if max(shown_width, shown_height) > options["max_aspect"] * min(shown_width, shown_height):
        raise _too_large("The video is too long and thin. Cut it.")
    return width, height


def _check_pixels(width: int, height: int, options: Facts) -> None:
    if width * height > options["max_pixels"]:
        raise _too_large(
            f"The video has {width} x {height} pixels; {options['max_pixels']} are allowed. Scale "
            "it down."
        )


def _shown_size(width: int, height: int, stream: Any) -> tuple[int, int]:
    """With square pixels, before it is turned: DVDs and old cameras store others."""
    ratio = float(stream.sample_aspect_ratio or 1)
    return max(1, round(width * ratio)) if 0 < ratio < 100 else width, height


def _packets(stream: Any, options: Facts) -> list[Any]:
    """All that have a time. Raises `MediaError` where something is cut off, or there is no end."""
    packets = []
    for packet in stream.container.demux(stream):
        if packet.is_corrupt:
            raise _damaged()
        if _time(packet) is not None:
            packets.append(packet)
        if len(packets) > options["max_packets"]:
            raise _too_large(
                f"The video has more than {options['max_packets']} frames. Cut it, or save it with "
                "fewer."
            )
    return packets


def _shown(packets: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """Times of those that are shown: an edit list may hide some that others refer to."""
    return ((_time(packet), packet) for packet in packets if not packet.is_discard)


def _time(packet: Any) -> Any:
    """AVI has no times of presentation: its own counts frames as they are decoded."""
    return packet.pts if packet.pts is not None else packet.dts


def _picture(frame: Any, kept: tuple[int, int]) -> Image.Image:
    """RGB, so large, then turned upright."""
    unspecified = frame.colorspace == UNSPECIFIED and frame.height >= HD_HEIGHT
    scaled = frame.reformat(
        *kept,
        format="rgb24",
        src_colorspace=ITU709 if unspecified else None,
        interpolation="AREA",
        threads=1,
    )
    return upright(scaled.to_image(), orientation_of(frame))


def orientation_of(frame: Any) -> int:
    """As EXIF counts it, from the display matrix: 3 x 3, the first two columns in 16.16."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 1
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix))
    largest = max(map(abs, (a, b, c, d)))
    signs = tuple((abs(each) > largest // 2) * (1 if each > 0 else -1) for each in (a, b, c, d))
    return ORIENTATIONS.get(signs, 1)


def _damaged() -> MediaError:
    return MediaError("invalid_video", "The video is damaged or truncated. Save and send it again.")


def _too_large(message: str) -> MediaError:
    return MediaError("video_too_large", message)
