"""A load run as JSON (the schema is below) and as a table.

    {"kind": "load",
     "command", "commit", "hardware", "versions", "measured_at":   see `lookm.bench.provenance`
     "url", "model", "warm_up",
     "mix":      {policy: weight}
     "workload": {"images", "image_side_px", "words", "answer_tokens", "ignore_eos", "seed"}
     "schedule": {"rate_per_s" or "concurrency", "requests", "duration_s"}, what was given
     "slo":      {"ttft_s", "itl_s", "e2e_s"}, what was given
     "wall_s":   from the start of the schedule to the end of the last answer
     "total":    MEASURES of all requests
     "policies": {policy: MEASURES}, each over the same wall_s
     "kv":       {"capacity_bytes", "used_bytes_peak", "used_bytes_mean" (over time),
                  "running_peak", "waiting_peak", "preemptions"}; null without our `/metrics`
     "requests": [{"policy", "due_s", "ttft_s", "e2e_s", "itl_p99_s", "output_tokens", "error"}]
     "kv_over_time": [[at_s, used_bytes, running, waiting]]}

    MEASURES:
    {"requests", "completed", "errors": {kind: count},
     "ttft_s", "itl_s", "tpot_s", "e2e_s":   SPREAD of complete answers, or null
     "late_s":                               SPREAD: how late the generator itself was
     "prompt_tokens", "output_tokens":       sums, from the servers' usage
     "uncounted":                            complete answers of unknown length
     "output_tokens_per_s", "requests_per_s",
     "good", "good_per_s":                   goodput: answers within the SLO; null without one
     "kv_bytes_mean", "kv_full_bytes_mean":  a prompt's cache, and at full; null elsewhere}
    SPREAD: {"count", "mean", "p50", "p90", "p99", "max"}, in seconds

Latencies count from when a request was due. `itl_s` are gaps between pieces of text, as a reader
sees them; `tpot_s` is the time per token of an answer after its first text. Error kinds: `connect`,
`timeout`, `dropped` (in the middle), `incomplete` (a stream that ends without a finish),
`error_event`, `not_json`, and `http_429 queue_full` and the like.
"""

from collections.abc import Iterator

from lookm.bench.provenance import provenance
from lookm.bench.records import Json
from server.bench.load.arrivals import Schedule
from server.bench.load.client import Sample, Target
from server.bench.load.generator import Run
from server.bench.load.measures import Slo, measure_all, measure_kv, percentile
from server.bench.load.workload import Workload
from server.bench.tables import seconds, text_table
from server.sizes import format_size

HEADER = (
    "policy", "asked", "failed", "TTFT p50", "p90", "p99", "ITL p50", "p99", "E2E p50", "p99",
    "tokens/s", "good", "KV a prompt",
)  # fmt: skip


def load_report(
    run: Run, target: Target, workload: Workload, schedule: Schedule, slo: Slo, command: str
) -> Json:
    """The schema above; `warm_up` is the caller's to add."""
    total, policies = measure_all(run, slo)
    return {
        "kind": "load",
        **provenance(command),
        "url": target.url,
        "model": workload.model,
        "mix": dict(workload.policies),
        "workload": workload.described(),
        "schedule": schedule.described(),
        "slo": slo.described(),
        "wall_s": run.wall_s,
        "total": total,
        "policies": policies,
        "kv": measure_kv(run.kv),
        "requests": [_request(sample) for sample in run.samples],
        "kv_over_time": [[k.at_s, k.used_bytes, k.running, k.waiting] for k in run.kv],
    }


def lines(report: Json) -> Iterator[str]:
    """The report as text."""
    yield f"{report['model']} at {report['url']}: {described(report)}"
    yield ""
    yield from text_table(rows(report))
    yield ""
    for kind, count in report["total"]["errors"].items():
        yield f"failed: {count} x {kind}"
    if (late := report["total"]["late_s"]) and late["p99"] > 0.05:
        yield f"the generator was late by {seconds(late['p99'])} (p99): this machine is too busy"
    if report["total"]["uncounted"]:
        yield f"{report['total']['uncounted']} answers of unknown length are not in tokens/s"
    if kv := report["kv"]:
        yield (
            f"KV cache held: peak {format_size(kv['used_bytes_peak'])}, mean "
            f"{format_size(round(kv['used_bytes_mean']))} of {format_size(kv['capacity_bytes'])}; "
            f"at once {kv['running_peak']} running, {kv['waiting_peak']} waiting; "
            f"{kv['preemptions']} preempted"
        )


def rows(report: Json) -> list[tuple[str, ...]]:
    """The table of the report: a row for each policy, and for all where there are several."""
    named = list(report["policies"].items())
    named += [("total", report["total"])] if len(named) > 1 else []
    return [HEADER, *(_row(name, each) for name, each in named)]


def described(report: Json) -> str:
    """Workload and schedule in one line."""
    work, schedule = report["workload"], report["schedule"]
    how = (
        f"{schedule['rate_per_s']:g} requests/s (Poisson)"
        if "rate_per_s" in schedule
        else f"{schedule['concurrency']} clients"
    )
    return (
        f"{report['total']['requests']} requests in {report['wall_s']:.1f} s, {how}, "
        f"{work['images']} images of {work['image_side_px']} px, {work['words']} words, "
        f"{work['answer_tokens']} tokens answered, seed {work['seed']}"
    )


def _row(name: str, each: Json) -> tuple[str, ...]:
    ttft, itl, e2e = (each[key] or {} for key in ("ttft_s", "itl_s", "e2e_s"))
    good = "-" if each["good"] is None else f"{each['good'] / max(1, each['requests']):.0%}"
    held = each["kv_bytes_mean"]
    return (
        name,
        str(each["requests"]),
        str(each["requests"] - each["completed"]),
        *(seconds(ttft.get(key)) for key in ("p50", "p90", "p99")),
        *(seconds(itl.get(key)) for key in ("p50", "p99")),
        *(seconds(e2e.get(key)) for key in ("p50", "p99")),
        f"{each['output_tokens_per_s']:.1f}",
        good,
        "-" if held is None else format_size(round(held)),
    )


def _request(sample: Sample) -> Json:
    gaps_s = sample.gaps_s
    return {
        "policy": sample.policy,
        "due_s": sample.due_s,
        "ttft_s": sample.ttft_s if sample.error is None else None,
        "e2e_s": sample.e2e_s,
        "itl_p99_s": percentile(gaps_s, 99) if gaps_s else None,
        "output_tokens": sample.output_tokens,
        "error": sample.error,
    }
