"""An allowance a minute, at its edges, on a clock that the test turns."""

import math

import pytest

from server.keys.account import duration
from server.keys.bucket import Bucket


class Clock:
    """A clock that stands still until it is turned."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_the_last_one_fits_and_the_next_must_wait_its_share_of_a_minute() -> None:
    clock = Clock()
    bucket = Bucket(3, clock)
    for _ in range(3):
        assert bucket.has(1)
        bucket.take(1)
    assert not bucket.has(1)
    assert bucket.wait_s(1) == pytest.approx(20, abs=1e-3)
    clock.now_s += 19.99
    assert not bucket.has(1)
    clock.now_s += 0.01
    assert bucket.has(1)


def test_small_steps_of_the_clock_lose_nothing() -> None:
    clock = Clock()
    bucket = Bucket(7, clock)
    bucket.take(7)
    for _ in range(6000):
        clock.now_s += 0.01
        assert bucket.left <= 7
    assert bucket.has(7)


def test_it_never_holds_more_than_a_minute_and_may_be_overdrawn() -> None:
    clock = Clock()
    bucket = Bucket(60, clock)
    clock.now_s += 3600
    assert bucket.left == 60
    bucket.take(90)
    assert bucket.left == -30
    assert bucket.wait_s(1) == pytest.approx(31)
    assert bucket.full_in_s() == pytest.approx(90)
    bucket.take(-1000)
    assert bucket.left == 60
    assert bucket.wait_s(60) == 0
    assert math.isinf(bucket.wait_s(61))


def test_other_limits_keep_what_was_used() -> None:
    clock = Clock()
    bucket = Bucket(60, clock)
    bucket.take(50)
    bucket.resize(120)
    assert bucket.left == 10
    clock.now_s += 1
    assert bucket.left == 12
    bucket.resize(6)
    assert bucket.left == 6


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (0.0001, "1ms"), (0.0165, "17ms"), (1, "1s"), (8.64, "8.64s"), (60, "1m0s"),
     (90.5, "1m30.5s"), (359.9999, "6m0s"), (3600, "60m0s")],
)  # fmt: skip
def test_durations_are_written_as_openai_does(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
