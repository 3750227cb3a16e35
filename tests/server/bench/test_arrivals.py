"""When requests are due."""

import itertools

import numpy as np
import pytest

from server.bench.load.arrivals import Schedule, poisson


def gaps(due_s):
    return [after - before for before, after in itertools.pairwise([0.0, *due_s])]


def test_arrivals_are_poisson():
    due_s = list(poisson(Schedule(rate_per_s=20, num_requests=5000), seed=0))
    assert np.mean(gaps(due_s)) == pytest.approx(1 / 20, rel=0.05)
    assert np.std(gaps(due_s)) == pytest.approx(1 / 20, rel=0.05)  # exponential: as the mean
    a_second = np.bincount(np.floor(due_s).astype(int))[:-1]
    assert np.var(a_second) == pytest.approx(20, rel=0.25)  # counts: variance as the mean


def test_the_seed_decides_the_arrivals():
    schedule = Schedule(rate_per_s=5, num_requests=10)
    assert [*poisson(schedule, 1)] == [*poisson(schedule, 1)]
    assert [*poisson(schedule, 1)] != [*poisson(schedule, 2)]


def test_a_higher_rate_is_the_same_arrivals_in_less_time():
    slow = [*poisson(Schedule(rate_per_s=1, num_requests=10), 0)]
    fast = [*poisson(Schedule(rate_per_s=4, num_requests=10), 0)]
    assert fast == pytest.approx([due / 4 for due in slow])


def test_arrivals_end_at_the_duration_or_the_number_whichever_is_first():
    both = Schedule(rate_per_s=10, num_requests=20, duration_s=1.0)
    due_s = list(poisson(both, 0))
    assert len(due_s) < 20
    assert max(due_s) < 1.0
    assert len(list(poisson(Schedule(rate_per_s=10, num_requests=3, duration_s=60), 0))) == 3


@pytest.mark.parametrize(
    "fields",
    [
        {"num_requests": 1},
        {"rate_per_s": 1, "concurrency": 1, "num_requests": 1},
        {"rate_per_s": 1},
        {"rate_per_s": 0, "num_requests": 1},
        {"concurrency": -1, "num_requests": 1},
        {"concurrency": 1, "duration_s": 0},
    ],
)
def test_a_schedule_without_a_pace_or_an_end_is_refused(fields):
    with pytest.raises(ValueError, match=r"either a rate|number of requests|above 0"):
        Schedule(**fields)
