"""The time that decoding takes is what a client waits, not what the engine computes."""

import dataclasses

from lookm.types import EngineStats
from server.decode_rate import DecodeClock

IDLE = EngineStats(2**20, 0, 0, 0, 0)


def run(*steps: tuple[float, int]) -> float:
    clock = DecodeClock()
    for now_s, decoded in steps:
        clock.step(now_s, dataclasses.replace(IDLE, decode_tokens_total=decoded))
    return clock.decoding_s


def test_from_the_prefill_to_the_last_token() -> None:
    assert run((10.0, 0), (11.0, 1), (13.0, 2)) == 3.0


def test_idle_time_and_prefills_alone_do_not_count() -> None:
    assert run((10.0, 0), (11.0, 1), (50.0, 1), (51.0, 2)) == 2.0


def test_a_new_worker_begins_anew() -> None:
    assert run((1.0, 0), (2.0, 7), (30.0, 0), (31.0, 1)) == 2.0


def test_a_first_step_that_decoded_has_no_beginning() -> None:
    assert run((5.0, 3)) == 0.0
