"""Running streams beside arriving prompts, as JSON (the schema is below) and as a table.

    {"kind": "stall", "command", "commit", "hardware", "versions", "measured_at",
     "url", "model", "streams", "stream_tokens", "prompts", "images", "image_side_px", "words",
     "answer_tokens", "baseline_s", "pause_s", "warm_up", "ignore_eos", "seed",
     "policies": {policy: FOUND}}
    FOUND: {"gaps", "gap_p50_s", "gap_p99_s", "gap_max_s":  while a prompt is under way
            "baseline_gaps", "baseline_gap_p50_s", "baseline_gap_p99_s", "baseline_gap_max_s",
            "ttft_p50_s", "ttft_max_s":                     of the arriving prompts
            "alone_ttft_p50_s", "alone_ttft_max_s":         of such prompts without streams
            "ttft_over_alone":                              of the two medians
            "tokens_per_s", "baseline_tokens_per_s":        of all streams together
            "tokens_per_piece":                             of streams that came to their end
            "prompt_tokens", "cached_tokens":               the most of one prompt
            "asked", "failed":                              {"streams", "prompts", "alone"}
            "errors": {kind: count}}

A gap is the time between two pieces of text of one answer, so neither the time before the first
token nor that between two answers is one. A piece counts as `tokens_per_piece` tokens, as 1 where
that is unknown. A prompt is under way from its being sent to the end of its answer, if it has one;
a gap counts where it overlaps that time, and in the baseline where it is inside. Numbers are null
where nothing was measured or the server is silent. Knows arithmetic; sends nothing.
"""

import itertools
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from lookm.bench.provenance import provenance
from lookm.bench.records import Json
from server.bench.load.client import Sample, Target
from server.bench.load.measures import percentile
from server.bench.stall import Span, Stall, Watched
from server.bench.tables import seconds, text_table


def stall_report(stall: Stall, target: Target, found: dict[str, Watched], command: str) -> Json:
    """The schema above."""
    return {
        "kind": "stall",
        **provenance(command),
        "url": target.url,
        "model": stall.model,
        **stall.described(),
        "policies": {policy: measured(watched) for policy, watched in found.items()},
    }


def measured(watched: Watched) -> Json:
    """FOUND of the schema above."""
    groups = {"streams": watched.streams, "prompts": watched.prompts, "alone": watched.alone}
    done = {name: [s for s in group if s.error is None] for name, group in groups.items()}
    under_way = [(sample.sent_s, sample.end_s) for sample in done["prompts"]]
    gaps_s = [gap for s in watched.streams for gap in gaps_during(s.piece_s, under_way)]
    calm_s = [gap for s in watched.streams for gap in gaps_inside(s.piece_s, watched.baseline)]
    waits_s, alone_s = ([s.ttft_s for s in done[name]] for name in ("prompts", "alone"))
    per_piece = _tokens_per_piece(done["streams"])
    prompts = done["prompts"] + done["alone"]
    errors = Counter(s.error for group in groups.values() for s in group if s.error is not None)
    return {
        "gaps": len(gaps_s),
        **_spread("gap", gaps_s, 50, 99),
        "baseline_gaps": len(calm_s),
        **_spread("baseline_gap", calm_s, 50, 99),
        **_spread("ttft", waits_s, 50),
        **_spread("alone_ttft", alone_s, 50),
        "ttft_over_alone": _ratio(waits_s, alone_s),
        "tokens_per_s": tokens_per_s(watched.streams, under_way, per_piece),
        "baseline_tokens_per_s": tokens_per_s(watched.streams, [watched.baseline], per_piece),
        "tokens_per_piece": per_piece,
        "prompt_tokens": _most(sample.prompt_tokens for sample in prompts),
        "cached_tokens": _most(sample.cached_tokens for sample in prompts),
        "asked": {name: len(group) for name, group in groups.items()},
        "failed": {name: len(group) - len(done[name]) for name, group in groups.items()},
        "errors": dict(sorted(errors.items())),
    }


def gaps_during(piece_s: Sequence[float], spans: Sequence[Span]) -> list[float]:
    """The gaps of one answer that overlap one of the spans, each once.

    Pieces at 0, 1, 4 and 5 s, a span from 2 to 3 s: the gap of 3 s.
    """
    return [
        after - before
        for before, after in itertools.pairwise(piece_s)
        if any(before < end and begin < after for begin, end in spans)
    ]


def gaps_inside(piece_s: Sequence[float], span: Span) -> list[float]:
    """The gaps of one answer that begin and end in the span."""
    return [
        after - before
        for before, after in itertools.pairwise(piece_s)
        if span[0] <= before and after <= span[1]
    ]


def tokens_per_s(
    samples: Sequence[Sample], spans: Sequence[Span], per_piece: float | None
) -> float | None:
    """Tokens that came in the spans, by their seconds together; None without any second."""
    total_s = sum(end - begin for begin, end in spans)
    if not total_s:
        return None
    arrivals_s = [at_s for sample in samples for at_s in sample.piece_s]
    inside = sum(any(begin <= at_s <= end for begin, end in spans) for at_s in arrivals_s)
    return inside * (per_piece or 1) / total_s


def _tokens_per_piece(streams: Sequence[Sample]) -> float | None:
    ended = [sample for sample in streams if sample.output_tokens and sample.piece_s]
    pieces = sum(len(sample.piece_s) for sample in ended)
    return sum(sample.output_tokens or 0 for sample in ended) / pieces if pieces else None


def _spread(name: str, values_s: Sequence[float], *percents: int) -> Json:
    """`NAME_p50_s` and so on, and `NAME_max_s`; null of nothing."""
    found = {f"{name}_p{q}_s": percentile(values_s, q) if values_s else None for q in percents}
    return {**found, f"{name}_max_s": max(values_s, default=None)}


def _ratio(some_s: Sequence[float], others_s: Sequence[float]) -> float | None:
    """Of their medians; None where one is of nothing."""
    if not some_s or not others_s:
        return None
    return statistics.median(some_s) / statistics.median(others_s)


def _most(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


HEADER = (
    "policy", "gap p50", "p99", "max", "baseline p50", "max", "TTFT p50", "max", "alone p50", "max",
    "of alone", "tokens/s", "baseline", "failed",
)  # fmt: skip
LEGEND = (
    "gap: between two tokens of a stream while a prompt is under way; baseline: with none;",
    "TTFT: of arriving prompts; alone: without streams; tokens/s: of all streams together",
)
TIMES = (
    "gap_p50_s", "gap_p99_s", "gap_max_s", "baseline_gap_p50_s", "baseline_gap_max_s",
    "ttft_p50_s", "ttft_max_s", "alone_ttft_p50_s", "alone_ttft_max_s",
)  # fmt: skip


def rows(report: Json) -> list[tuple[str, ...]]:
    """The table of the report: a row for each policy."""
    return [HEADER, *(_row(policy, found) for policy, found in report["policies"].items())]


def _row(policy: str, found: Json) -> tuple[str, ...]:
    ratio = found["ttft_over_alone"]
    speeds = (found["tokens_per_s"], found["baseline_tokens_per_s"])
    return (
        policy,
        *(seconds(found[name]) for name in TIMES),
        "-" if ratio is None else f"{ratio:.2f}x",
        *("-" if speed is None else f"{speed:.1f}" for speed in speeds),
        f"{sum(found['failed'].values())} of {sum(found['asked'].values())}",
    )


def described(report: Json) -> str:
    """What ran and what arrived, in one line."""
    return (
        f"{report['streams']} streams; {report['prompts']} prompts of {report['images']} images of "
        f"{report['image_side_px']} px arrive one after the other"
    )


def lines(report: Json) -> Iterator[str]:
    """The report as text."""
    yield f"{report['model']} at {report['url']}: {described(report)}"
    yield ""
    yield from text_table(rows(report))
    yield ""
    yield from LEGEND
    for policy, found in report["policies"].items():
        for kind, count in found["errors"].items():
            yield f"{policy}: failed: {count} x {kind}"
        if (per_piece := found["tokens_per_piece"]) and abs(per_piece - 1) > 0.05:
            yield f"{policy}: a gap is between pieces of text, of {per_piece:.2f} tokens each"
        if found["cached_tokens"]:
            yield f"{policy}: the server knew up to {found['cached_tokens']} tokens of a prompt"
