"""The capacity experiment: its search, its conditions, and a pool of known size."""

import json
import threading
import time

import pytest
from typer.testing import CliRunner

from server.bench.capacity.elastic import parse_range, stretch, with_elastic
from server.bench.capacity.large_model import on_paper
from server.bench.capacity.report import capacity_report, lines
from server.bench.capacity.search import Experiment, attempt, explore, largest, missed
from server.bench.html import page
from server.bench.load.client import Sample, Target
from server.bench.load.generator import Run
from server.bench.load.measures import Slo
from server.bench.load.polling import KvSample
from server.bench.load.workload import Spread, Workload
from server.bench.readme_tables import RUNS
from server.cli import app
from tests.server.bench.stub_server import standing_in

SLO = Slo(ttft_s=1.0, itl_s=0.5)
SMALL = Workload("m", Spread(1, 1), 16, Spread(3, 3), Spread(6, 6))


@pytest.mark.parametrize("edge", [0, 1, 2, 7, 30, 31, 32])
@pytest.mark.parametrize("start", [1, 6, 32])
def test_the_search_finds_the_edge_from_wherever_it_begins(edge, start):
    tried = []

    def holds(n):
        tried.append(n)
        return n <= edge

    assert largest(holds, start, bound=32) == edge
    assert all(1 <= n <= 32 for n in tried)
    assert len(tried) == len(set(tried)) <= 12
    if edge < 32:
        assert edge + 1 in tried  # what one more misses is known


def test_a_good_guess_costs_two_trials():
    tried = []
    largest(lambda n: tried.append(n) or n <= 9, 9, 200)
    assert tried == [9, 10]


def sample(index, first_s, end_s, finish="length", error=None):
    pieces = [first_s, end_s]
    return Sample(index, "full", 0.0, 0.0, pieces, end_s, finish, error, kv_bytes=30)


def missed_of(*samples, preemptions=0, peak=80):
    kv = (KvSample(0, 0, 100, 0, 0, 3), KvSample(1, peak, 100, 0, 0, 3 + preemptions))
    return missed(Run(samples, kv, 5.0), SLO)


def test_conversations_that_overlap_within_the_slo_are_served_together():
    assert missed_of(sample(0, 0.1, 0.5), sample(1, 0.4, 0.8)) == ()


def test_one_that_begins_when_another_has_ended_was_not_served_together():
    assert missed_of(sample(0, 0.1, 0.5), sample(1, 0.6, 0.9)) == ("queued",)


def test_waiting_beside_free_pages_is_waiting_for_the_prefill():
    """Where the pool had room for another prompt of 30 bytes, it was not the pool."""
    apart = (sample(0, 0.1, 0.5), sample(1, 0.6, 0.9))
    assert missed_of(*apart, peak=70) == ("slow prefill",)
    assert missed_of(*apart, peak=71) == ("queued",)


def test_a_preemption_a_late_first_token_and_a_stall_are_each_a_miss():
    assert missed_of(sample(0, 0.1, 0.5), preemptions=1) == ("preempted",)
    assert missed_of(sample(0, 1.1, 1.2)) == ("TTFT",)
    assert missed_of(sample(0, 0.1, 0.7)) == ("ITL",)


def test_an_answer_that_failed_or_is_too_short_is_a_miss():
    assert missed_of(sample(0, 0.1, 0.2, error="dropped")) == ("failed: dropped",)
    assert missed_of(sample(0, 0.1, 0.2, finish="stop")) == ("failed: a short answer",)


class Pool:
    """A server with `size` bytes; a conversation takes 12 at full, and its fraction else."""

    def __init__(self, size):
        self._free = size
        self._changed = threading.Condition()

    def answer(self, call):
        policy = call.body.get("kv_cache", "full")
        need = 12 if policy == "full" else round(12 * float(policy.partition("@")[2]))
        with self._changed:
            self._changed.wait_for(lambda: self._free >= need)
            self._free -= need
        try:
            call.whole(6, gap_s=0.015)
        finally:
            with self._changed:
                self._free += need
                self._changed.notify_all()


def test_a_pool_of_known_size_is_found_to_be_of_that_size():
    experiment = Experiment(SMALL, fractions=(0.25, 1.0, 0.5), slo=SLO, max_conversations=16)
    with standing_in(Pool(24).answer) as url:
        points = list(explore(Target(url), experiment, lambda keep, tokens: None))
    assert [(point.policy, point.conversations) for point in points] == [
        ("full", 2), ("look-m@0.5", 4), ("look-m@0.25", 8),
    ]  # fmt: skip
    assert all(point.limit == ("queued",) for point in points)
    report = json.loads(json.dumps(capacity_report(points, experiment, "test", None)))
    assert [row["ratio"] for row in report["rows"]] == [1.0, 2.0, 4.0]
    assert len(report["trials"]) == sum(len(point.trials) for point in points)
    assert any("look-m@0.25" in line and "4.0x" in line for line in lines(report))


def test_no_trial_sends_pictures_that_another_one_sent():
    seen = []

    def keep(call):
        seen.append(call.body["messages"][0]["content"][0]["image_url"]["url"])
        call.whole(6)

    experiment = Experiment(SMALL, slo=SLO)
    with standing_in(keep) as url:
        for number in range(3):
            attempt(Target(url), experiment, 1.0, 2, number)
    assert len(set(seen)) == len(seen) == 6


def test_a_server_that_serves_nobody_is_a_zero_and_not_a_crash():
    experiment = Experiment(SMALL, fractions=(1.0,), slo=SLO, max_conversations=4)
    with standing_in(lambda call: call.status(503)) as url:
        (point,) = explore(Target(url), experiment, lambda keep, tokens: None)
    assert (point.conversations, point.limit) == (0, ("failed: http_503",))
    assert capacity_report([point], experiment, "test", None)["rows"][0]["ratio"] is None


def test_a_conversation_that_the_server_refuses_is_reported_and_not_searched_for():
    policies = []

    def refuse(call):
        policies.append(call.body["kv_cache"])
        call.status(400, {"error": {"code": "invalid_kv_cache"}})

    experiment = Experiment(SMALL, method="zip", fractions=(1.0, 0.5), slo=SLO)
    with standing_in(refuse) as url, pytest.raises(ValueError, match="http_400 invalid_kv_cache"):
        list(explore(Target(url), experiment, lambda keep, tokens: None))
    assert set(policies) == {"zip@0.5"}
    assert len(policies) == 2


def test_on_paper_a_fifth_of_the_cache_is_more_than_four_times_the_conversations():
    paper = on_paper([1.0, 0.2])
    found = {(row["keep"], row["answer_tokens"]): row for row in paper["rows"]}
    token_bytes = 32 * 32 * 128 * 2 * 2
    assert found[1.0, 64]["bytes_each"] == (6 * 576 + 64 + 64) * token_bytes
    assert found[1.0, 64]["conversations"] == paper["pool_bytes"] // found[1.0, 64]["bytes_each"]
    assert found[0.2, 64]["ratio"] >= 4
    assert found[0.2, 256]["ratio"] < found[0.2, 64]["ratio"]  # long answers are kept whole


def test_what_the_committed_run_says_on_paper_is_what_the_engines_arithmetic_says():
    made = json.loads((RUNS / "capacity.json").read_text())
    paper = on_paper([row["keep"] for row in made["rows"]])
    rows = [row | {"ratio": pytest.approx(row["ratio"], abs=1e-5)} for row in paper["rows"]]
    assert made["paper"] == paper | {"rows": rows}


class ElasticPool(Pool):
    """As `Pool`; who asks for a range gets an even share of what those who have come leave."""

    def answer(self, call):
        policy = str(call.body.get("kv_cache", "full"))
        if "-" not in policy.partition("@")[2]:
            return super().answer(call)
        time.sleep(0.05)  # the others come
        with self._changed:
            self._changed.wait_for(lambda: self._free >= 2)
            need = 4 if self._free >= 20 else 2
            self._free -= need
        try:
            call.whole(6, gap_s=0.015, keep=need / 12)
        finally:
            with self._changed:
                self._free += need
                self._changed.notify_all()


def test_an_elastic_load_overflows_the_pool_at_its_most_and_is_served_at_a_price():
    experiment = Experiment(SMALL, fractions=(0.5, 0.25), slo=SLO, max_conversations=16)
    with standing_in(ElasticPool(24).answer) as url:
        points = list(explore(Target(url), experiment, lambda keep, tokens: None))
        found = stretch(Target(url), experiment, (0.17, 0.5), points)
    assert (found.policy, found.fixed) == ("look-m@0.17-0.5", 4)
    served = [trial for trial in found.trials if not trial.missed]
    assert served[0].conversations == 4
    assert max(trial.conversations for trial in served) > 6
    assert served[0].keep_mean > served[-1].keep_mean
    report = with_elastic(capacity_report(points, experiment, "test", None), found)
    shown = "\n".join(lines(json.loads(json.dumps(report))))
    assert "Elastic, look-m@0.17-0.5, in the same pool, which at its most serves 4" in shown
    assert "An elastic budget" in page(report)


@pytest.mark.parametrize("text", ["0.5", "0.5-0.1", "0-0.5", "0.1-1.5", "a-b", "0.1-0.5-1"])
def test_a_range_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match=r"0\.1-0\.5"):
        parse_range(text)


def test_no_range_is_none():
    assert parse_range("") is None
    assert parse_range("0.1-0.5") == (0.1, 0.5)


@pytest.mark.slow
@pytest.mark.e2e
def test_the_command_measures_the_demo_model(tmp_path):
    flags = "--kv-cache-memory 6MiB --keep 1,0.2 --images 8 --answer-tokens 12 --slo-ttft-s 60"
    saved = tmp_path / "capacity.json"
    arguments = ["bench", "capacity", *flags.split(), "--slo-itl-s", "30", "--json", str(saved)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    full, fifth = json.loads(saved.read_text())["rows"]
    assert full["conversations"] == full["expected"] == 1
    assert fifth["conversations"] >= 4
    assert fifth["bytes_each"] < 0.25 * full["bytes_each"]
