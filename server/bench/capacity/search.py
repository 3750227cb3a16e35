"""How many many-image conversations one pool serves together, by the fraction kept.

**The claim of this server, measured.** For each fraction kept, the largest N for which N
conversations that start at the same moment are all served well *at once*:

1. every answer is complete, with as many tokens as it may have;
2. every conversation has its first token before any has its last one: at that moment the pool holds
   all N of them. With fewer places, someone would wait for another one's end;
3. nobody's pages were taken away again (no preemption), where the server tells;
4. every conversation meets the SLO: its first token, and the 99th percentile of its gaps.

Starting together is the hardest order of arrival: all prompts are prefilled while answers are being
read, and all answers are at their longest at nearly the same time. Conversations that arrive one by
one fit at least as well. Answers must take more steps than there are conversations, or the first
one ends before the last begins.

A trial that misses only by time is tried once more (machines are shared); all trials are in the
report. Knows the load generator and how to search; knows nothing about engines.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from server.bench.load.arrivals import Schedule
from server.bench.load.client import Sample, Target
from server.bench.load.generator import Run, run
from server.bench.load.measures import Slo, measure, measure_kv, percentile
from server.bench.load.workload import Workload

FRACTIONS = (1.0, 0.5, 0.35, 0.2, 0.1)
# Nielsen, Usability Engineering, 1993, section 5.5: after ten seconds attention is lost; up to one
# second the flow of thought is not interrupted.
SLO = Slo(ttft_s=10.0, itl_s=1.0)
WARM_UP = 2
REFUSED = ("http_400", "http_401", "http_404", "http_413")  # however few there are
TRIES = 2

Expect = Callable[[float, int], int | None]

FAILED, QUEUED, SLOW, PREEMPTED = "failed", "queued", "slow prefill", "preempted"
TTFT, ITL = "TTFT", "ITL"
TIMING = frozenset((SLOW, TTFT, ITL))


@dataclass(frozen=True, slots=True)
class Experiment:
    """What is to be found out. `max_conversations` bounds the search."""

    workload: Workload
    method: str = "look-m"
    fractions: tuple[float, ...] = FRACTIONS
    slo: Slo = SLO
    max_conversations: int = 256

    def __post_init__(self) -> None:
        if not self.fractions or not all(0 < keep <= 1 for keep in self.fractions):
            raise ValueError("fractions kept are above 0 and at most 1, such as 1,0.5,0.2")

    def policy(self, keep: float) -> str:
        """`full` for everything, else `look-m@0.2`."""
        return "full" if keep == 1 else f"{self.method}@{keep:g}"


@dataclass(frozen=True, slots=True)
class Trial:
    """N conversations started together. `missed` is empty where all conditions hold.

    `keep` is the fraction asked for, of a range the most; `keep_mean` and so on were taken.
    """

    keep: float
    conversations: int
    missed: tuple[str, ...]
    ttft_max_s: float
    itl_p99_max_s: float
    output_tokens_per_s: float
    used_bytes_peak: int | None
    prompt_kv_bytes: float | None
    prompt_tokens: int
    keep_mean: float | None = None
    keep_min: float | None = None
    keep_max: float | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """The answer for one fraction: the largest trial that held, and what the next one missed.

    `expected` is what the arithmetic of pages says. `best` is None where not even one conversation
    was served; `limit` is empty at the bound of the search.
    """

    keep: float
    policy: str
    expected: int | None
    best: Trial | None
    limit: tuple[str, ...]
    trials: tuple[Trial, ...]

    @property
    def conversations(self) -> int:
        """How many; 0 where none."""
        return 0 if self.best is None else self.best.conversations


def parse_fractions(text: str) -> tuple[float, ...]:
    """`1,0.5,0.2`. Raises `ValueError`."""
    try:
        return tuple(float(each) for each in text.split(","))
    except ValueError:
        raise ValueError(f"cannot read {text!r}: write fractions kept, such as 1,0.5,0.2") from None


def explore(target: Target, experiment: Experiment, expect: Expect) -> Iterator[Point]:
    """A point for each fraction, from the largest kept to the smallest; yields as it goes.

    `expect(keep, prompt_tokens)` is where the search begins; the answer does not depend on it.
    Raises `ValueError` where the server does not take such a request at all.
    """
    number = itertools.count()
    policies = ((experiment.policy(min(experiment.fractions)), 1.0),)
    before = experiment.workload
    warm = replace(before, policies=policies, nonce=before.nonce + next(number))
    warmed = run(target, warm, Schedule(concurrency=WARM_UP, num_requests=WARM_UP))
    for sample in warmed.samples:
        if sample.error is not None and sample.error.startswith(REFUSED):
            raise ValueError(f"the server refuses such a conversation: {sample.error}")
    prompt_tokens = max(sample.prompt_tokens or 0 for sample in warmed.samples)
    num_held = 0
    for keep in sorted(experiment.fractions, reverse=True):
        trials: list[Trial] = []

        def holds(conversations: int, keep: float = keep, trials: list[Trial] = trials) -> bool:
            for _ in range(TRIES):
                trials.append(attempt(target, experiment, keep, conversations, next(number)))
                if not trials[-1].missed or not TIMING.issuperset(trials[-1].missed):
                    break
            return not trials[-1].missed

        expected = expect(keep, prompt_tokens)
        num_held = largest(holds, max(1, expected or num_held), experiment.max_conversations)
        yield _point(keep, experiment.policy(keep), expected, num_held, trials)


def largest(holds: Callable[[int], bool], start: int, bound: int) -> int:
    """The largest n in 0..bound that `holds`, which is true up to some n and false from there.

    Walks from `start` by 1, 2, 4, ... until it has passed the edge, then halves the interval.
    """
    held, failed, step, n = 0, bound + 1, 1, min(start, bound)
    while failed - held > 1:
        if holds(n):
            held = n
        else:
            failed = n
        if failed > bound:
            n, step = min(held + step, bound), 2 * step
        elif held == 0:
            n, step = max(failed - step, 1), 2 * step
        else:
            n = (held + failed) // 2
    return held


def attempt(
    target: Target,
    experiment: Experiment,
    keep: float,
    conversations: int,
    number: int,
    *,
    policy: str | None = None,
) -> Trial:
    """One trial. Its pictures are its own: features cached by an earlier one would not be fair."""
    policies, before = ((policy or experiment.policy(keep), 1.0),), experiment.workload
    workload = replace(before, policies=policies, nonce=before.nonce + number)
    schedule = Schedule(concurrency=conversations, num_requests=conversations)
    measured = run(target, workload, schedule)
    numbers = measure(measured.samples, measured.wall_s, experiment.slo)
    kv = measure_kv(measured.kv)
    taken = [sample.keep for sample in measured.samples if sample.keep is not None]
    return Trial(
        keep=keep,
        conversations=conversations,
        missed=missed(measured, experiment.slo),
        ttft_max_s=max(sample.ttft_s for sample in measured.samples),
        itl_p99_max_s=max(_gap_s(sample) for sample in measured.samples),
        output_tokens_per_s=numbers["output_tokens_per_s"],
        used_bytes_peak=None if kv is None else kv["used_bytes_peak"],
        prompt_kv_bytes=numbers["kv_bytes_mean"],
        prompt_tokens=max(sample.prompt_tokens or 0 for sample in measured.samples),
        keep_mean=sum(taken) / len(taken) if taken else None,
        keep_min=min(taken, default=None),
        keep_max=max(taken, default=None),
    )


def missed(measured: Run, slo: Slo) -> tuple[str, ...]:
    """Which of the four conditions do not hold.

    The second has two names: `queued` for a place in the pool, or `slow prefill` where the pool had
    room for one more all the time: the first answer was over before the last prompt was computed.
    """
    samples = measured.samples
    for sample in samples:
        if sample.error is not None or sample.finish != "length":
            return (f"{FAILED}: {sample.error or 'a short answer'}",)
    kv = measure_kv(measured.kv)
    apart = max(s.first_s for s in samples) > min(s.end_s for s in samples)
    room = kv is not None and _room_for(max(s.kv_bytes or 0 for s in samples), kv)
    conditions = {
        QUEUED: apart and not room,
        SLOW: apart and room,
        PREEMPTED: kv is not None and kv["preemptions"] > 0,
        TTFT: any(not Slo(ttft_s=slo.ttft_s, e2e_s=slo.e2e_s).met_by(s) for s in samples),
        ITL: any(not Slo(itl_s=slo.itl_s).met_by(s) for s in samples),
    }
    return tuple(name for name, found in conditions.items() if found)


def _point(
    keep: float, policy: str, expected: int | None, num_held: int, trials: Sequence[Trial]
) -> Point:
    best = next((t for t in trials if t.conversations == num_held and not t.missed), None)
    above = [trial for trial in trials if trial.conversations == num_held + 1]
    return Point(keep, policy, expected, best, above[-1].missed if above else (), tuple(trials))


def _room_for(prompt_bytes: int, kv: dict[str, Any]) -> bool:
    """Whether the pool always had room for one more prompt."""
    return bool(kv["used_bytes_peak"] + prompt_bytes <= kv["capacity_bytes"])


def _gap_s(sample: Sample) -> float:
    return percentile(sample.gaps_s, 99) if sample.gaps_s else 0.0
