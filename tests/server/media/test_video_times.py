"""Which frames are looked at, by their own times; and how a time is written."""

import contextlib

import pytest

from server.media.containers import container_of
from server.media.media_error import MediaError
from server.media.video_times import clock, labels, sample

STEADY = [n / 25 for n in range(251)]  # ten seconds


def test_a_short_video_gives_fps_frames_a_second_and_a_long_one_is_spread_evenly() -> None:
    assert [STEADY[n] for n in sample(STEADY, 1, 32)] == list(range(11))
    assert [STEADY[n] for n in sample(STEADY, 0.2, 32)] == [0, 5, 10]
    assert [STEADY[n] for n in sample(STEADY, 25, 5)] == [0, 2.48, 5, 7.48, 10]
    assert [STEADY[n] for n in sample(STEADY, 1, 11)] == list(range(11))
    assert [STEADY[n] for n in sample(STEADY, 1, 1)] == [5]
    assert sample([0.0], 1, 32) == [0]


def test_what_is_shown_at_a_time_counts_and_not_the_number_of_a_frame() -> None:
    slides = [0.0, 7.5, 8.0, 8.1, 60.0]
    assert [slides[n] for n in sample(slides, 1, 100)] == [0.0, 8.0, 8.1, 60.0]
    assert [slides[n] for n in sample(slides, 10, 3)] == [0.0, 8.1, 60.0]


def test_times_rounded_to_milliseconds_are_not_taken_for_the_frame_before() -> None:
    rounded = [round(n / 30, 3) for n in range(31)]
    assert sample(rounded, 30, 100) == list(range(31))


@pytest.mark.parametrize(
    ("time_s", "text"),
    [(0, "0:00.0"), (3.5, "0:03.5"), (59.96, "1:00.0"), (754.25, "12:34.2"), (3723.5, "1:02:03.5")],
)
def test_a_time_is_written_as_players_show_it(time_s: float, text: str) -> None:
    assert clock(time_s) == text


def test_frames_that_are_close_have_times_that_differ() -> None:
    assert labels([0.0, 0.5]) == ["0:00.0", "0:00.5"]
    assert labels([0.0, 0.04, 0.08]) == ["0:00.00", "0:00.04", "0:00.08"]


BOX = b"\0\0\0\x10ftypisom\0\0\0\0" + b"\0\0\0\x10mdat" + bytes(8)
LONG_BOX = BOX[:16] + b"\0\0\0\x01mdat" + (24).to_bytes(8, "big") + bytes(8)
LAST_BOX = BOX[:16] + b"\0\0\0\0mdat" + bytes(99)
SEGMENT = b"\x1a\x45\xdf\xa3\x84abcd" + b"\x18\x53\x80\x67\x88" + bytes(8)
LIVE = SEGMENT.replace(b"\x67\x88", b"\x67\x01" + b"\xff" * 7)
RIFF = b"RIFF\x0c\0\0\0AVI " + bytes(8)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (BOX, "mov"),
        (LONG_BOX, "mov"),
        (LAST_BOX, "mov"),
        (SEGMENT, "matroska"),
        (LIVE, "matroska"),
        (RIFF, "avi"),
    ],
)
def test_a_container_is_known_by_its_first_bytes(data: bytes, name: str) -> None:
    assert container_of(data) == name


@pytest.mark.parametrize("data", [BOX, LONG_BOX, SEGMENT, RIFF])
def test_what_says_that_it_is_longer_is_truncated(data: bytes) -> None:
    with pytest.raises(MediaError, match="truncated") as refused:
        container_of(data[:-1])
    assert refused.value.code == "invalid_video"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"#EXTM3U\nfile:///etc/passwd",
        b"ffconcat version 1.0\nfile /etc/passwd",
        b"\x89PNG\r\n\x1a\n",
        b"\0\0\0\x18ftypheic",
        b"RIFF\x0c\0\0\0WEBP",
        b"GIF89a",
        b"\x47" * 4096,
    ],
)
def test_no_other_format_reaches_ffmpeg(data: bytes) -> None:
    with pytest.raises(MediaError, match=r"no bytes|Send MP4, MOV, WebM, MKV or AVI"):
        container_of(data)


@pytest.mark.parametrize("data", [BOX, LONG_BOX, SEGMENT, LIVE, RIFF])
def test_any_beginning_of_a_file_is_an_answer_or_a_refusal(data: bytes) -> None:
    for cut in range(len(data)):
        for tail in (b"", b"\0" * 16, b"\xff" * 16):
            with contextlib.suppress(MediaError):
                assert container_of(data[:cut] + tail) in ("mov", "matroska", "avi")
