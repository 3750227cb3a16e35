"""How many tokens of a prompt of T are kept: functions `(policy, T) -> Budget`.

Knows counts only. The last `recent` tokens are kept as they are; `important` of the candidates (the
rest) are chosen by score. Heads all get the same budget; so do layers, unless `depth` spreads it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from lookm.types import CachePolicy

NUM_SINKS = 4


@dataclass(frozen=True, slots=True)
class Budget:
    """`important` tokens chosen by score, then the last `recent` tokens; together 1 to T."""

    important: int
    recent: int

    @property
    def total(self) -> int:
        return self.important + self.recent


BudgetRule = Callable[[CachePolicy, int], Budget]


def split(policy: CachePolicy, num_tokens: int) -> Budget:
    """LOOK-M's N and M (equations 6 to 8), from a fraction of the prompt or from a token count.

    With `keep`: `M = int(T * (keep * recent))`, `N = int(T * (keep * (1 - recent)))`, so that 0.2
    is the paper's `int(0.1 T) + int(0.1 T)`; `keep = 1` is all T tokens, whatever rounding says.
    With `keep_tokens = n`: `M = round(n * recent)` (halves to even), `N = n - M`.
    A budget that comes to nothing is one token: the last, or with `recent = 0` the best.
    A budget of T or more is T.
    """
    assert policy.recent is not None, "resolve() gives every policy its share of recent tokens"
    if policy.keep_tokens is not None:
        recent = round(policy.keep_tokens * policy.recent)
        important = policy.keep_tokens - recent
    else:
        keep = policy.keep
        assert keep is not None, "resolve() gives every policy a budget"
        recent = int(num_tokens * (keep * policy.recent))
        important = int(num_tokens * (keep * (1 - policy.recent)))
        if keep == 1:
            important = num_tokens - recent
    if important + recent == 0:
        return Budget(0, 1) if policy.recent > 0 else Budget(1, 0)
    recent = min(recent, num_tokens)
    return Budget(min(important, num_tokens - recent), recent)


def sinks_then_recent(policy: CachePolicy, num_tokens: int) -> Budget:
    """`split`'s total, spent on the first 4 tokens and then on the last ones (StreamingLLM).

    `recent` decides only how `split` rounds. One token of the budget is always the last token.
    """
    total = split(policy, num_tokens).total
    sinks = min(NUM_SINKS, total - 1)
    return Budget(sinks, total - sinks)
