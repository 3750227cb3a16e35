"""Running streams beside arriving prompts: what is sent, what counts as a gap, what has failed."""

import json
import threading
import time
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from server.bench.load.client import Sample, Target
from server.bench.load.workload import DEFAULT_POLICY, WORDS
from server.bench.readme_tables import TABLES
from server.bench.stall import Stall, Watched, prompt, watch
from server.bench.stall_report import (
    gaps_during,
    gaps_inside,
    lines,
    measured,
    stall_report,
    tokens_per_s,
)
from server.cli import app
from tests.server.bench.stub_server import standing_in

SMALL = Stall(
    "m",
    stream_tokens=50,
    prompts=2,
    images=2,
    image_side_px=16,
    words=8,
    baseline_s=0.05,
    pause_s=0,
)
GAP_S = 0.002


def answered(sent_s, first_s, end_s, **fields):
    return Sample(0, "p", sent_s, sent_s, [first_s], end_s, "length", **fields)


def stream(*piece_s, error=None, output_tokens=None):
    return Sample(0, DEFAULT_POLICY, 0, 0, list(piece_s), error=error, output_tokens=output_tokens)


def is_stream(call):
    return isinstance(call.body["messages"][0]["content"], str)


def whole(call):
    """A stream of fifty pieces, or the two of a prompt."""
    call.whole(call.body["max_tokens"], GAP_S)


def watched(answer, stall=SMALL, policy="full"):
    with standing_in(answer) as url:
        return watch(stall, Target(url), policy)


def test_a_gap_counts_once_where_it_overlaps_a_prompt():
    piece_s = [0, 1, 4, 5, 6, 9]
    assert gaps_during(piece_s, [(2, 3)]) == [3]
    assert gaps_during(piece_s, [(2, 2.5), (3, 3.5)]) == [3]
    assert gaps_during(piece_s, [(0.5, 1.5), (7, 20)]) == [1, 3, 3]
    assert gaps_during(piece_s, [(4, 5)]) == [1], "a gap that only touches it is not in it"
    assert gaps_during(piece_s, []) == gaps_during([3], [(0, 9)]) == []


def test_a_gap_of_the_baseline_begins_and_ends_in_it():
    assert gaps_inside([0, 1, 3, 6, 10], (0.5, 6)) == [2, 3]
    assert gaps_inside([], (0, 1)) == []


def test_gaps_are_of_one_answer_so_a_restart_and_a_first_token_are_none():
    """One stream of two answers, the second begun at 3 s: 2 s, 8 s to its first token, 1 s."""
    streams = [stream(0, 2), stream(11, 12)]
    found = measured(Watched([], [answered(1, 11, 13)], streams, (0, 13)))
    assert (found["gaps"], found["gap_max_s"], found["gap_p50_s"]) == (2, 2, 1.5)
    assert (found["baseline_gaps"], found["baseline_gap_max_s"]) == (2, 2)


def test_percentiles_ratio_and_speeds_are_of_the_definitions():
    """Pieces each second, but 5 s from 10 to 15 s, where a prompt waits 4 s; alone it waits 2 s."""
    streams = [stream(*range(11), *range(15, 21), output_tokens=34)]
    alone = [answered(0, 2, 2.5, prompt_tokens=70, cached_tokens=0), answered(3, 5, 6)]
    busy = [answered(10.5, 14.5, 14.75, prompt_tokens=72), answered(15.25, 19.25, 19.75)]
    found = measured(Watched(alone, busy, streams, (0, 10)))
    assert found["gaps"] == 6
    assert (found["gap_p50_s"], found["gap_max_s"]) == (1, 5)
    assert found["gap_p99_s"] == pytest.approx(1 + 4 * 0.95)
    assert (found["baseline_gaps"], found["baseline_gap_p50_s"]) == (10, 1)
    assert (found["ttft_p50_s"], found["ttft_max_s"], found["alone_ttft_p50_s"]) == (4, 4, 2)
    assert found["ttft_over_alone"] == 2
    assert found["tokens_per_piece"] == 2
    assert found["tokens_per_s"] == pytest.approx(4 * 2 / (4.25 + 4.5))
    assert found["baseline_tokens_per_s"] == pytest.approx(11 * 2 / 10)
    assert (found["prompt_tokens"], found["cached_tokens"]) == (72, 0)
    assert found["asked"] == {"streams": 1, "prompts": 2, "alone": 2}


def test_a_piece_is_a_token_where_no_stream_came_to_its_end():
    assert tokens_per_s([stream(1, 2, 3)], [(0, 1.5), (2.5, 3)], None) == 1
    assert tokens_per_s([stream(1)], [], 2.0) is None


def test_a_prompt_that_failed_has_no_time_and_is_counted_by_its_kind():
    busy = [answered(0, 1, 4, error="timeout"), answered(5, 6, 7)]
    streams = [stream(0, 4.5, 5.5), stream(0, 1, error="dropped")]
    found = measured(Watched([], busy, streams, (0, 0)))
    assert (found["gaps"], found["gap_max_s"], found["ttft_max_s"]) == (1, 1, 1)
    assert found["failed"] == {"streams": 1, "prompts": 1, "alone": 0}
    assert found["errors"] == {"dropped": 1, "timeout": 1}
    assert found["ttft_over_alone"] is None
    assert found["alone_ttft_p50_s"] is None


def test_every_prompt_has_pictures_that_nobody_saw_and_no_answer_more_than_asked():
    bodies = []

    def keep(call):
        bodies.append(call.body)
        whole(call)

    with standing_in(keep) as url:
        for nonce, policy in enumerate(("full", "look-m@0.2")):
            stall = replace(SMALL, nonce=nonce)
            watch(stall, Target(url), policy)
    prompts = [body for body in bodies if not isinstance(body["messages"][0]["content"], str)]
    streams = [body for body in bodies if isinstance(body["messages"][0]["content"], str)]
    assert len(prompts) == 2 * 2 * (SMALL.warm_up + SMALL.prompts)
    urls = [
        part["image_url"]["url"]
        for body in prompts
        for part in body["messages"][0]["content"]
        if part["type"] == "image_url"
    ]
    assert len(set(urls)) == len(urls) == 2 * len(prompts)
    assert [body["kv_cache"] for body in prompts] == ["full"] * 6 + ["look-m@0.2"] * 6
    assert {body["max_tokens"] for body in prompts} == {2}
    assert not any("kv_cache" in body for body in streams)
    said = [body["messages"][0]["content"] for body in streams]
    assert len(set(said)) == len(said)


def test_the_servers_default_is_asked_for_by_no_field():
    assert "kv_cache" not in json.loads(prompt(SMALL, 0, DEFAULT_POLICY).body)


def test_a_stream_that_ends_is_begun_again_until_the_last_prompt_is_answered():
    seen = watched(whole, Stall("m", stream_tokens=3, images=0, baseline_s=0.1, pause_s=0))
    assert len(seen.streams) > 2 * 2
    assert {sample.index for sample in seen.streams} == {0, 1}
    assert all(sample.error is None for sample in seen.streams)
    assert all(len(sample.piece_s) <= 3 for sample in seen.streams)
    begun = seen.baseline[0]
    assert begun < seen.baseline[1] <= min(sample.sent_s for sample in seen.prompts)


def test_streams_that_a_prompt_holds_up_show_it_and_the_baseline_does_not():
    """The server gives the streams nothing while it reads a prompt, 0.2 s."""
    free = threading.Event()
    free.set()

    def one_at_a_time(call):
        if is_stream(call):
            call.begin()
            for _ in range(10_000):
                free.wait()
                time.sleep(GAP_S)
                call.piece("word ")
        else:
            free.clear()
            time.sleep(0.2)
            free.set()
            call.whole(2)

    found = measured(watched(one_at_a_time))
    assert found["gap_max_s"] >= 0.15
    assert found["ttft_p50_s"] >= 0.2
    assert found["gaps"] >= 2 * 2, "each prompt holds up each stream"
    assert found["baseline_gaps"] > 0
    assert found["baseline_gap_p50_s"] < 0.15
    assert found["asked"] == {"streams": 2, "prompts": 2, "alone": 2}
    assert not found["errors"]


def test_a_stream_that_fails_or_says_nothing_is_not_begun_again():
    def refused(call):
        if is_stream(call):
            call.status(429, {"error": {"code": "queue_full"}})
        else:
            whole(call)

    found = measured(watched(refused))
    assert found["failed"] == {"streams": 2, "prompts": 0, "alone": 0}
    assert found["errors"] == {"http_429 queue_full": 2}
    assert (found["gaps"], found["gap_p50_s"], found["gap_max_s"]) == (0, None, None)
    assert found["ttft_p50_s"] is not None

    def silent(call):
        if is_stream(call):
            call.begin()
            call.piece("", "stop")
        else:
            whole(call)

    assert measured(watched(silent))["errors"] == {"empty": 2}


def test_prompts_that_are_refused_are_counted_and_the_streams_go_on():
    def busy(call):
        if is_stream(call):
            whole(call)
        else:
            call.status(503)

    found = measured(watched(busy))
    assert found["failed"] == {"streams": 0, "prompts": 2, "alone": 2}
    assert found["errors"] == {"http_503": 4}
    assert (found["gaps"], found["tokens_per_s"], found["ttft_p50_s"]) == (0, None, None)
    assert found["baseline_gaps"] > 0


def test_the_report_is_a_table_with_every_policy_and_every_failure():
    seen = Watched(
        [answered(0, 1, 2)],
        [answered(5, 7, 8, cached_tokens=9), answered(9, 9, 9, error="timeout")],
        [stream(*range(10), output_tokens=30)],
        (0, 4),
    )
    report = stall_report(SMALL, Target("http://x"), {"full": seen, "h2o": seen}, "lookm")
    told = list(lines(report))
    assert sum(line.startswith(("full ", "h2o ")) for line in told) == 2
    assert "full: failed: 1 x timeout" in told
    assert "h2o: the server knew up to 9 tokens of a prompt" in told
    assert "full: a gap is between pieces of text, of 3.00 tokens each" in told
    first, _, header, rule, row, _, _, legend = TABLES["stall"](report)
    assert first == "2 streams; 2 prompts of 2 images of 16 px arrive one after the other:"
    assert legend.startswith("gap: between two tokens of a stream")
    assert header.count("|") == rule.count("|") == row.count("|")
    assert row.startswith(
        "| `full` | 1 s | 1 s | 1 s | 1 s | 1 s | 2 s | 2 s | 1 s | 1 s | 2.00x |"
    )


def test_the_command_saves_its_report_and_fails_where_no_stream_ran(tmp_path):
    saved = tmp_path / "stall.json"
    small = "--streams 1 --stream-tokens 9 --prompts 1 --images 1 --image-side-px 16"
    flags = f"{small} --baseline-s 0.05 --pause-s 0 --policies full,h2o --json {saved}".split()
    with standing_in(whole) as url:
        done = CliRunner().invoke(app, ["bench", "stall", "--url", url, *flags])
    assert done.exit_code == 0, done.output
    report = json.loads(saved.read_text())
    assert report["kind"] == "stall"
    assert list(report["policies"]) == ["full", "h2o"]
    assert (report["streams"], report["images"], report["baseline_s"]) == (1, 1, 0.05)
    assert report["commit"]
    assert report["hardware"]
    with standing_in(lambda call: call.status(500)) as url:
        done = CliRunner().invoke(app, ["bench", "stall", "--url", url, *flags])
    assert done.exit_code == 1
    assert "http_500" in done.output
    done = CliRunner().invoke(app, ["bench", "stall", "--url", url, *flags])
    assert done.exit_code == 2
    assert "--model" in done.output


def test_words_of_a_prompt_are_the_same_under_every_policy():
    texts = [
        json.loads(prompt(SMALL, 3, policy).body)["messages"][0]["content"][-1]["text"]
        for policy in ("full", "look-m@0.2")
    ]
    assert texts[0] == texts[1]
    assert set(texts[0].split()) <= set(WORDS)
