"""Reports: what is saved, what is printed, and pages that need nothing but themselves."""

import copy
import json
import re
import sys

import pytest
from typer.testing import CliRunner

from lookm.bench import records
from lookm.bench.provenance import provenance
from server.bench.capacity.report import capacity_report
from server.bench.capacity.search import Experiment, Point, Trial
from server.bench.html import compare_page, page
from server.bench.load import report
from server.bench.load.arrivals import Schedule
from server.bench.load.client import Sample, Target
from server.bench.load.compare import compare, differences
from server.bench.load.generator import Run
from server.bench.load.measures import Slo
from server.bench.load.polling import KvSample
from server.bench.load.workload import Spread, Workload
from server.bench.terminal import command
from server.cli import app
from tests.server.bench.stub_server import standing_in

MIX = (("full", 1.0), ("look-m@0.2", 1.0))


def load_run(slower=1.0):
    samples = [
        Sample(
            i, MIX[i % 2][0], i * 0.1, i * 0.1,
            [i * 0.1 + slower * (1 + 0.1 * j) for j in range(5)], i * 0.1 + slower * 1.5,
            "length", prompt_tokens=9, output_tokens=5, kv_bytes=2**20, kv_full_bytes=2**22,
        )
        for i in range(10)
    ]  # fmt: skip
    samples.append(Sample(10, "full", 1.0, 1.0, end_s=1.1, error="http_429 queue_full"))
    kv = tuple(KvSample(at, 2**20 * at, 2**26, at, 0, 0) for at in range(4))
    made = report.load_report(
        Run(tuple(samples), kv, 4.0),
        Target("http://127.0.0.1:1"),
        Workload("m", policies=MIX),
        Schedule(rate_per_s=10, num_requests=11),
        Slo(ttft_s=2.0),
        "lookm bench",
    )
    return json.loads(json.dumps(made))


def capacity_run():
    trial = Trial(1.0, 2, (), 0.5, 0.1, 100.0, 2**20, 2**19, 500)
    failed = Trial(1.0, 3, ("queued",), 0.9, 0.1, 100.0, 2**20, 2**19, 500)
    points = [
        Point(1.0, "full", 2, trial, ("queued",), (trial, failed)),
        Point(0.2, "look-m@0.2", None, None, ("failed",), (failed,)),
    ]
    made = capacity_report(points, Experiment(Workload("m")), "lookm bench capacity", 2**22)
    return json.loads(json.dumps(made))


def test_the_table_names_every_policy_the_errors_and_the_pool():
    text = "\n".join(report.lines(load_run()))
    for words in (
        "full",
        "look-m@0.2",
        "total",
        "1 x http_429 queue_full",
        "10 requests/s",
        "1 MiB",
    ):
        assert words in text
    assert "peak 3 MiB" in text


def test_the_schema_in_the_module_is_the_schema_of_the_file():
    made, schema = load_run(), report.__doc__
    names = {*made, *made["total"], *made["kv"], *made["requests"][0], *made["workload"]}
    assert all(f'"{name}"' in schema for name in names)


def test_a_saved_run_is_read_back_and_another_file_is_refused(tmp_path):
    path = tmp_path / "deep" / "run.json"
    records.save(load_run(), path)
    assert records.read(path, "load")["total"]["requests"] == 11
    with pytest.raises(ValueError, match="kind 'capacity'"):
        records.read(path, "capacity")
    path.write_text("no")
    with pytest.raises(ValueError, match="not JSON"):
        records.read(path, "load")
    with pytest.raises(ValueError, match="cannot read"):
        records.read(tmp_path / "none.json", "load")


def test_two_runs_of_one_workload_are_compared_with_ratios():
    text = "\n".join(compare(load_run(), load_run(slower=2.0)))
    (line,) = re.findall(r"^TTFT p50 .*$", text, re.MULTILINE)[:1]
    assert line.split() == ["TTFT", "p50", "1", "s", "2", "s", "2.00x"]
    assert text.count("TTFT p50") == 3  # all, and each policy


def test_different_workloads_are_refused_unless_one_insists():
    first, second = load_run(), load_run()
    second["workload"]["images"] = "8"
    second["schedule"]["rate_per_s"] = 20
    assert len(differences(first, second)) == 2
    with pytest.raises(ValueError, match=r"images 2 / 8.*--any-workload"):
        list(compare(first, second))
    assert "not the same: workload images 2 / 8" in list(compare(first, second, any_workload=True))


def test_policies_servers_and_commits_may_differ():
    first, second = load_run(), load_run()
    second |= {"mix": {"full": 1.0}, "url": "http://elsewhere", "model": "x", "commit": "0000000"}
    second["policies"] = {"full": copy.deepcopy(first["policies"]["full"])}
    assert list(compare(first, second))


PAGES = {
    "load": lambda: page(load_run()),
    "capacity": lambda: page(capacity_run()),
    "compare": lambda: compare_page(load_run(), load_run(slower=2.0)),
}


@pytest.mark.parametrize("kind", PAGES)
def test_a_page_needs_nothing_but_itself(kind):
    html = PAGES[kind]()
    assert html.startswith("<!doctype html>")
    assert html.count("<svg") >= 3
    assert not re.findall(r"<(?:script|link|img|iframe|object)\b|@import|url\((?!#)", html)
    outside = re.findall(r'(?:href|src)="(?!#)([^"]*)"', html)
    assert not outside


def test_a_page_without_a_single_answer_is_still_a_page():
    run = Run((Sample(0, "full", 0, 0, error="connect", end_s=0.1),), (), 0.1)
    schedule = Schedule(concurrency=1, num_requests=1)
    workload = Workload("m", policies=(("full", 1.0),))
    made = report.load_report(run, Target("http://x"), workload, schedule, Slo(), "lookm bench")
    assert "Failed: 1 x connect" in page(made)
    assert list(report.lines(made))


def test_a_report_says_where_it_comes_from_and_no_secret(monkeypatch):
    typed = ["/home/x/lookm", "bench", "--api-key", "s3", "--rate=2", "--json", "/home/x/a.json"]
    monkeypatch.setattr(sys, "argv", typed)
    assert command() == "lookm bench --rate=2"
    monkeypatch.setattr(sys, "argv", ["lookm", "bench", "--api-key=s3", "--policies", "full h2o"])
    assert command() == "lookm bench --policies 'full h2o'"
    found = provenance("x")
    assert re.fullmatch(r"[0-9a-f]{7}(-changed)?|unknown", found["commit"])
    assert "GiB" in found["hardware"]
    assert "/" not in found["hardware"]


def test_the_command_writes_what_it_prints_and_compares_with_a_saved_run(tmp_path):
    saved, html = tmp_path / "a.json", tmp_path / "a.html"
    flags = ["--rate=200", "--requests=6", "--images=1", "--image-side-px=16", "--answer-tokens=3"]
    flags += ["--policies=full=0.5 look-m@0.2=0.5", "--no-ignore-eos"]
    with standing_in(lambda call: call.whole(3)) as url:
        arguments = ["bench", "--url", url, *flags]
        first = CliRunner().invoke(app, [*arguments, "--json", str(saved), "--html", str(html)])
        second = CliRunner().invoke(app, [*arguments, "--compare", str(saved)])
    assert first.exit_code == second.exit_code == 0, first.output + second.output
    made = records.read(saved, "load")
    assert (made["total"]["completed"], made["total"]["output_tokens"]) == (6, 18)
    assert made["model"] == "stand-in"
    assert made["mix"] == {"full": 0.5, "look-m@0.2": 0.5}
    assert "<svg" in html.read_text()
    assert "B / A" in second.output
    third = CliRunner().invoke(app, ["bench", "compare", str(saved), str(saved)])
    assert "1.00x" in third.output


@pytest.mark.parametrize(
    "flags",
    [
        ["--url", "http://127.0.0.1:9", "--requests", "1"],
        ["--model", "m", "--rate", "1", "--concurrency", "2"],
        ["--model", "m", "--images", "many"],
        ["--model", "m", "--policies", "full=x"],
        ["--model", "m", "--compare", "none.json"],
        ["compare", "none.json", "none.json"],
        ["capacity", "--model", "m", "--keep", "1,all"],
        ["capacity", "--model", "m", "--keep", "1,0"],
        ["capacity", "--model", "no-such-model"],
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_2(flags):
    done = CliRunner().invoke(app, ["bench", *flags])
    assert done.exit_code == 2
    assert done.output.startswith("error: ")
    assert len(done.output.strip().splitlines()) == 1


def test_spreads_with_the_same_words_are_the_same_workload():
    assert Workload("m", Spread.parse("2")).described() == Workload("m", Spread(2, 2)).described()
