"""How much work fits in a step, learned from what prompts and decoding took."""

import pytest

from lookm.config import EngineConfig
from lookm.pace import Pace


def test_a_step_is_a_small_multiple_of_what_decoding_takes() -> None:
    pace = Pace.of(EngineConfig(), "cpu")
    assert pace.step_s == 0.1
    for decode_s, step_s in ((0.01, 0.1), (0.05, 0.2), (1.0, 0.25)):
        for _ in range(40):
            pace.learn_decode(decode_s)
        assert pace.step_s == pytest.approx(step_s, rel=1e-3)
    assert Pace.of(EngineConfig(max_step_ms=70), "cpu").step_s == 0.07
    assert Pace.of(EngineConfig(), "cuda").step_s == 0.03


def test_what_fits_half_a_step_runs_in_one_piece() -> None:
    pace = Pace.of(EngineConfig(), "cpu")
    assert pace.step_tokens == 128
    for _ in range(40):
        pace.learn(1000, 0.25)  # 4,000 a second
    assert pace.step_tokens == pytest.approx(200, abs=2)
    for _ in range(40):
        pace.learn(1000, 10)
    assert pace.step_tokens == 64
    for _ in range(40):
        pace.learn(1000, 0.001)
    assert pace.step_tokens == 512, "a tile"
    pace.learn(3, 100)
    assert pace.step_tokens == 512, "too few to tell"


def test_without_tiles_a_step_has_a_size() -> None:
    pace = Pace.of(EngineConfig(tile_tokens=0, max_step_tokens=300), "cpu")
    pace.learn(1000, 10)
    assert pace.step_tokens == 300


def test_on_a_gpu_tiles_are_counted() -> None:
    pace = Pace.of(EngineConfig(), "cuda")
    assert pace.tiles_in_step(32) > 10**6
    for _ in range(40):
        pace.learn(40_960, 1)
    assert pace.tiles_in_step(32) == int(0.03 * 40_960 * 32 / 2048)


def test_a_step_ends_with_the_tile_that_ends_nearest_to_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for tile_s, num_tiles in ((0.013, 8), (0.03, 3), (0.039, 3), (0.045, 2), (0.5, 1)):
        now_s = 0.0
        monkeypatch.setattr("time.monotonic", lambda: now_s)  # noqa: B023 as it is then
        is_late = Pace.of(EngineConfig(), "cpu").pause(0.1, 12)
        done = 0
        while True:
            now_s += tile_s
            done += 1
            if is_late():
                break
        assert done == num_tiles, tile_s


def test_on_a_gpu_a_step_ends_after_so_many_tiles() -> None:
    pace = Pace.of(EngineConfig(), "cuda")
    for _ in range(40):
        pace.learn(40_960, 1)
    is_late = pace.pause(0.0, 32)
    assert [is_late() for _ in range(20)].count(False) == pace.tiles_in_step(32) - 1
