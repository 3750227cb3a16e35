"""Answers counted: how many are right, how many equal the full cache's, and in how many bytes.

Intervals are 95 %: Wilson's for shares (every mark 0 or 1), a seeded percentile bootstrap over the
questions for marks in between (ROUGE-L). Agreement compares whole answers as text. Knows nothing of
suites but the tasks' names.
"""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lookm.eval.questions import FULL, Answer

#: The name under which all tasks are counted together, each question once.
ALL = "all"
_Z = 1.959964
_ROUNDS = 1000


@dataclass(frozen=True, slots=True)
class Score:
    """One policy on one task. Shares in [0, 1]; `bytes_ratio` is KV bytes held over full-cache
    bytes, the mean over its questions (None where the server does not tell)."""

    policy: str
    asked: int
    failed: int
    right: float
    right_low: float
    right_high: float
    lenient: float | None
    agrees: float
    agrees_low: float
    agrees_high: float
    bytes_ratio: float | None


def score_tasks(
    answers: Mapping[tuple[str, str], Answer], keys: Iterable[str], policies: Sequence[str]
) -> dict[str, list[Score]]:
    """Task -> a score for each policy; the first is `ALL`. `answers` holds every key and policy,
    and every key at `FULL`."""
    by_task: dict[str, list[str]] = {ALL: []}
    for key in keys:
        by_task[ALL].append(key)
        by_task.setdefault(answers[key, FULL].task, []).append(key)
    return {
        task: [
            score(
                policy,
                [answers[key, policy] for key in named],
                [answers[key, FULL] for key in named],
            )
            for policy in policies
        ]
        for task, named in by_task.items()
        if named
    }


def score(policy: str, answers: Sequence[Answer], at_full: Sequence[Answer]) -> Score:
    """Sum up one policy's answers beside those at full cache, question by question."""
    marks = [answer.score for answer in answers]
    low, high = interval(marks)
    pairs = zip(answers, at_full, strict=True)
    same = [float(one.error is None and one.text == other.text) for one, other in pairs]
    softer = [one.lenient for one in answers if one.lenient is not None]
    ratios = [
        one.kept_bytes / one.full_bytes
        for one in answers
        if one.kept_bytes is not None and one.full_bytes
    ]
    return Score(
        policy,
        len(answers),
        sum(one.error is not None for one in answers),
        _mean(marks),
        low,
        high,
        _mean(softer) if softer else None,
        _mean(same),
        *interval(same),
        _mean(ratios) if ratios else None,
    )


def interval(marks: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean: Wilson's where every mark is 0 or 1, else bootstrap."""
    if all(mark in (0.0, 1.0) for mark in marks):
        return wilson(sum(marks), len(marks))
    return bootstrap(marks)


def wilson(right: float, asked: int) -> tuple[float, float]:
    """Wilson's score interval (1927) of `right` out of `asked`.

    (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n), z = 1.96.
    """
    share, z2 = right / asked, _Z * _Z / asked
    middle = share + z2 / 2
    reach = math.sqrt(share * (1 - share) * z2 + z2 * z2 / 4)
    low, high = (middle - reach) / (1 + z2), (middle + reach) / (1 + z2)
    return (0.0 if right == 0 else low), (1.0 if right == asked else high)


def bootstrap(marks: Sequence[float]) -> tuple[float, float]:
    """Percentiles 2.5 and 97.5 of the mean over resampled questions (Efron 1979), seed 0."""
    rng = random.Random(0)
    means = sorted(_mean(rng.choices(marks, k=len(marks))) for _ in range(_ROUNDS))
    return means[int(0.025 * _ROUNDS)], means[int(0.975 * _ROUNDS) - 1]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
