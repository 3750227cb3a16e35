"""Numbers worked out by hand."""

import pytest

from server.bench.load.client import Sample
from server.bench.load.generator import Run
from server.bench.load.measures import Slo, measure, measure_all, measure_kv, percentile, spread
from server.bench.load.polling import KvSample


def sample(index=0, policy="full", due_s=0.0, piece_s=(1.0, 2.0), end_s=2.0, **fields):
    ending = {"finish": "length", "prompt_tokens": 10, "output_tokens": 4} | fields
    return Sample(index, policy, due_s, due_s, list(piece_s), end_s, **ending)


def test_percentiles_are_linear_between_the_nearest_two():
    assert percentile([4, 1, 3, 2], 50) == 2.5
    assert percentile([1, 2, 3, 4], 90) == pytest.approx(3.7)
    assert percentile(range(101), 99) == 99
    assert percentile([7.0], 99) == 7


def test_a_spread_of_nothing_is_nothing():
    assert spread([]) is None
    assert spread([1.0, 3.0]) == {
        "count": 2, "mean": 2.0, "p50": 2.0, "p90": 2.8, "p99": 2.98, "max": 3.0,
    }  # fmt: skip


def test_latencies_count_from_when_a_request_was_due():
    late = Sample(0, "full", due_s=1.0, sent_s=4.0, piece_s=[5.0, 5.5, 7.0], end_s=7.5)
    assert late.ttft_s == 4.0
    assert late.e2e_s == 6.5
    assert late.gaps_s == [0.5, 1.5]


def test_an_answer_without_text_has_its_first_token_at_its_end():
    assert sample(due_s=1.0, piece_s=(), end_s=3.0).ttft_s == 2.0


def test_tokens_come_from_usage_and_not_from_pieces():
    found = measure([sample(piece_s=(1.0, 2.0), output_tokens=5)], 2.0, Slo())
    assert found["output_tokens"] == 5
    assert found["output_tokens_per_s"] == 2.5
    assert found["tpot_s"]["mean"] == 0.25  # one second for the four tokens after the first
    assert found["itl_s"]["mean"] == 1.0  # one gap between two pieces


def test_answers_of_unknown_length_are_said_to_be_uncounted():
    found = measure([sample(), sample(output_tokens=None)], 1.0, Slo())
    assert (found["output_tokens"], found["uncounted"], found["tpot_s"]["count"]) == (4, 1, 1)


def test_errors_are_counted_by_kind_and_have_no_latency():
    samples = [sample(), sample(error="timeout", end_s=60.0), sample(error="timeout"), sample()]
    found = measure([*samples, sample(error="http_429 queue_full")], 2.0, Slo())
    assert found["errors"] == {"http_429 queue_full": 1, "timeout": 2}
    assert (found["requests"], found["completed"]) == (5, 2)
    assert found["e2e_s"]["max"] == 2.0
    assert found["requests_per_s"] == 1.0


@pytest.mark.parametrize(
    ("slo", "good"),
    [
        (Slo(ttft_s=1.0), True),  # exactly at the bound
        (Slo(ttft_s=0.9), False),
        (Slo(itl_s=1.0), True),
        (Slo(itl_s=0.9), False),
        (Slo(e2e_s=2.0), True),
        (Slo(e2e_s=1.9), False),
        (Slo(ttft_s=1.0, itl_s=1.0, e2e_s=1.9), False),  # all of them, not any
        (Slo(), True),
    ],
)
def test_an_answer_is_good_within_every_bound(slo, good):
    assert slo.met_by(sample()) is good


def test_a_stall_is_not_good_however_fast_the_rest_was():
    times = [0.1 * i for i in range(1, 51)] + [9.0]
    assert not Slo(itl_s=1.0).met_by(sample(piece_s=times, end_s=9.0))


def test_a_failed_request_is_never_good():
    assert not Slo(e2e_s=100).met_by(sample(error="dropped"))


def test_goodput_is_good_answers_per_second_of_the_whole_run():
    samples = [sample(), sample(end_s=9.0), sample(error="connect"), sample()]
    found = measure(samples, 4.0, Slo(e2e_s=5.0))
    assert (found["good"], found["good_per_s"]) == (2, 0.5)
    assert measure(samples, 4.0, Slo())["good"] is None


def test_policies_share_the_wall_time():
    mixed = (sample(0, "full", kv_bytes=100), sample(1, "look-m@0.2", kv_bytes=20), sample(2))
    total, policies = measure_all(Run(mixed, (), 4.0), Slo())
    assert total["output_tokens_per_s"] == 3.0
    assert policies["full"]["output_tokens_per_s"] == 2.0
    assert policies["look-m@0.2"]["output_tokens_per_s"] == 1.0
    assert policies["look-m@0.2"]["kv_bytes_mean"] == 20
    assert sum(each["requests"] for each in policies.values()) == total["requests"]


def look(at_s, used_bytes, running=1, waiting=0, preemptions=0):
    return KvSample(at_s, used_bytes, 1000, running, waiting, preemptions)


def test_the_mean_of_the_pool_is_over_time_and_not_over_looks():
    found = measure_kv([look(0.0, 0), look(1.0, 100), look(1.1, 100), look(4.0, 100)])
    assert found["used_bytes_mean"] == pytest.approx((50 + 300) / 4)
    assert found["used_bytes_peak"] == 100


def test_preemptions_are_those_of_this_run():
    found = measure_kv([look(0, 0, preemptions=7), look(1, 5, running=9, waiting=2, preemptions=9)])
    assert (found["preemptions"], found["running_peak"], found["waiting_peak"]) == (2, 9, 2)
    assert measure_kv([]) is None
