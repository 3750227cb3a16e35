"""From samples to numbers: percentiles, throughput, errors by kind, goodput under an SLO.

Latencies are of complete answers only; failed requests are counted by kind, and are never good.
Knows arithmetic; knows nothing about servers.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from server.bench.load.client import Sample
from server.bench.load.generator import Run
from server.bench.load.polling import KvSample

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class Slo:
    """What a user still finds good, in seconds; None does not matter.

    `itl_s` bounds the 99th percentile of one answer's gaps between pieces of text: an answer that
    stalls is not good, however fast it is on average.
    """

    ttft_s: float | None = None
    itl_s: float | None = None
    e2e_s: float | None = None

    @property
    def is_set(self) -> bool:
        """Whether it asks for anything."""
        return any(bound is not None for bound in (self.ttft_s, self.itl_s, self.e2e_s))

    def met_by(self, sample: Sample) -> bool:
        """Whether this answer was complete and good."""
        gap_s = percentile(sample.gaps_s, 99) if sample.gaps_s else 0.0
        pairs = ((self.ttft_s, sample.ttft_s), (self.itl_s, gap_s), (self.e2e_s, sample.e2e_s))
        return sample.error is None and all(bound is None or took <= bound for bound, took in pairs)

    def described(self) -> dict[str, float]:
        """Only what is set."""
        return {name: bound for name, bound in asdict(self).items() if bound is not None}


def percentile(values: Sequence[float], q: float) -> float:
    """Linear between the two nearest: of 1, 2, 3, 4 the 50th is 2.5. `values` is not empty."""
    return float(np.percentile(np.asarray(values, dtype=np.float64), q))


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """`count`, `mean`, `p50`, `p90`, `p99`, `max`; None of nothing."""
    if not values:
        return None
    percentiles = {f"p{q}": percentile(values, q) for q in PERCENTILES}
    return {
        "count": len(values),
        "mean": sum(values) / len(values),
        **percentiles,
        "max": max(values),
    }


def measure(samples: Sequence[Sample], wall_s: float, slo: Slo) -> dict[str, Any]:
    """The numbers of some requests over `wall_s` seconds. Schema: `server.bench.load.report`."""
    done = [sample for sample in samples if sample.error is None]
    tokens = [sample.output_tokens for sample in done if sample.output_tokens is not None]
    good = sum(slo.met_by(sample) for sample in samples)
    return {
        "requests": len(samples),
        "completed": len(done),
        "errors": dict(sorted(Counter(s.error for s in samples if s.error).items())),
        "ttft_s": spread([sample.ttft_s for sample in done]),
        "itl_s": spread([gap for sample in done for gap in sample.gaps_s]),
        "tpot_s": spread([_per_token_s(sample) for sample in done if _num_tokens(sample) > 1]),
        "e2e_s": spread([sample.e2e_s for sample in done]),
        "late_s": spread([sample.sent_s - sample.due_s for sample in samples]),
        "prompt_tokens": sum(sample.prompt_tokens or 0 for sample in done),
        "output_tokens": sum(tokens),
        "uncounted": len(done) - len(tokens),
        "output_tokens_per_s": sum(tokens) / wall_s if wall_s else 0.0,
        "requests_per_s": len(done) / wall_s if wall_s else 0.0,
        "good": good if slo.is_set else None,
        "good_per_s": good / wall_s if slo.is_set and wall_s else None,
        "kv_bytes_mean": _mean(sample.kv_bytes for sample in done),
        "kv_full_bytes_mean": _mean(sample.kv_full_bytes for sample in done),
    }


def measure_all(run: Run, slo: Slo) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The numbers of all requests, and those of each policy. All are over the same wall time."""
    names = sorted({sample.policy for sample in run.samples})
    each = {
        name: measure([s for s in run.samples if s.policy == name], run.wall_s, slo)
        for name in names
    }
    return measure(run.samples, run.wall_s, slo), each


def measure_kv(kv: Sequence[KvSample]) -> dict[str, Any] | None:
    """The pool while it was looked at; the mean is over time. None where nobody looked."""
    if len(kv) < 2:
        return None
    seconds = kv[-1].at_s - kv[0].at_s
    area = sum(
        (b.at_s - a.at_s) * (a.used_bytes + b.used_bytes) / 2 for a, b in itertools.pairwise(kv)
    )
    return {
        "capacity_bytes": kv[-1].capacity_bytes,
        "used_bytes_peak": max(look.used_bytes for look in kv),
        "used_bytes_mean": area / seconds if seconds else kv[0].used_bytes,
        "running_peak": max(look.running for look in kv),
        "waiting_peak": max(look.waiting for look in kv),
        "preemptions": kv[-1].preemptions - kv[0].preemptions,
    }


def _per_token_s(sample: Sample) -> float:
    """Seconds per token after the first, from the first text to the last."""
    return (sample.piece_s[-1] - sample.piece_s[0]) / (_num_tokens(sample) - 1)


def _num_tokens(sample: Sample) -> int:
    """Tokens of an answer that had text; 0 where that is unknown."""
    return (sample.output_tokens or 0) if sample.piece_s else 0


def _mean(values: Iterable[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
