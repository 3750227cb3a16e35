"""Load that overflows the pool at the most an elastic policy keeps: served at once, at what price?

The price is what is kept. From as many conversations as the pool serves at the fixed fraction that
is the policy's most, up to as many as are served at all, each load is tried once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lookm.bench.records import Json
from server.bench.capacity.search import TIMING, TRIES, Experiment, Point, Trial, attempt, largest
from server.bench.load.client import Target
from server.bench.tables import seconds
from server.sizes import format_size

FIRST_NONCE = 10**6  # of its trials, none of which sends pictures of another
BETWEEN = 3  # loads tried between the two


@dataclass(frozen=True, slots=True)
class Elastic:
    """The range asked for, and a trial for each load, in order."""

    policy: str
    fixed: int | None  # conversations that the pool serves at the most; None where not measured
    trials: tuple[Trial, ...]


def parse_range(text: str) -> tuple[float, float] | None:
    """`0.1-0.5`; None of nothing. Raises `ValueError`."""
    if not text:
        return None
    low, _, high = text.partition("-")
    try:
        found = float(low), float(high)
    except ValueError:
        found = (0.0, 0.0)
    if not 0 < found[0] < found[1] <= 1:
        raise ValueError(f"cannot read {text!r}: write the least and the most, such as 0.1-0.5")
    return found


def stretch(
    target: Target, experiment: Experiment, keep: tuple[float, float], points: Sequence[Point]
) -> Elastic:
    """Find how many are served, and try loads up to there."""
    low, high = keep
    policy = f"{experiment.method}@{low:g}-{high:g}"
    known = {point.keep: point.conversations for point in points}
    trials: dict[int, Trial] = {}
    number = FIRST_NONCE

    def holds(conversations: int) -> bool:
        nonlocal number
        for _ in range(TRIES):
            number += 1
            trials[conversations] = trial = attempt(
                target, experiment, high, conversations, number, policy=policy
            )
            if not trial.missed or not TIMING.issuperset(trial.missed):
                break
        return not trials[conversations].missed

    start = known.get(low) or max(1, *known.values())
    held = largest(holds, start, experiment.max_conversations)
    first = known.get(high) or 1
    loads = {first + (held - first) * n // (BETWEEN + 1) for n in range(BETWEEN + 2)}
    for load in sorted(loads - trials.keys()):
        if 0 < load <= experiment.max_conversations:
            holds(load)
    wanted = [n for n in sorted(trials) if n in loads or n == held + 1]
    return Elastic(policy, known.get(high), tuple(trials[n] for n in wanted))


def described(found: Elastic) -> Json:
    """As JSON: `fixed` is how many the pool serves at the fixed fraction that is the most."""
    return {
        "policy": found.policy,
        "fixed": found.fixed,
        "rows": [
            {
                "conversations": trial.conversations,
                "missed": list(trial.missed),
                "keep_mean": trial.keep_mean,
                "keep_min": trial.keep_min,
                "keep_max": trial.keep_max,
                "bytes_each": trial.prompt_kv_bytes,
                "used_bytes_peak": trial.used_bytes_peak,
                "output_tokens_per_s": trial.output_tokens_per_s,
                "ttft_max_s": trial.ttft_max_s,
            }
            for trial in found.trials
        ],
    }


COLUMNS = (
    "conversations at once", "kept, mean", "least to most", "KV a prompt", "KV held, peak",
    "tokens/s", "last first token", "misses",
)  # fmt: skip


def title(made: Json) -> str:
    """What the table shows."""
    fixed = "" if made["fixed"] is None else f", which at its most serves {made['fixed']}"
    return f"Elastic, {made['policy']}, in the same pool{fixed}"


def cells(made: Json) -> Iterator[tuple[str, ...]]:
    """A row for each load, as words."""
    for row in made["rows"]:
        size = [row["bytes_each"], row["used_bytes_peak"]]
        speed = row["output_tokens_per_s"]
        taken = row["keep_mean"] is not None
        yield (
            str(row["conversations"]),
            f"{row['keep_mean']:.0%}" if taken else "-",
            f"{row['keep_min']:.0%} to {row['keep_max']:.0%}" if taken else "-",
            *("-" if each is None else format_size(round(each)) for each in size),
            "-" if speed is None else f"{speed:.0f}",
            seconds(row["ttft_max_s"]),
            ", ".join(row["missed"]) or "-",
        )


def with_elastic(report: Json, found: Elastic | None) -> Json:
    """A capacity report with it, and without the key where there is none."""
    return report if found is None else {**report, "elastic": described(found)}
