"""How many rows are kept, how many pages and bytes that is, and how many conversations fit.

The one answer for all who ask: admission, the plan of memory, usage, `/tokenize`, the banner,
`lookm plan` and the benches. Pure arithmetic; knows policies' budgets, layers' windows and pages.
Knows nothing about what a machine has (`memory`) or who runs now (`scheduler`).
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lookm.config import EngineConfig
from lookm.errors import PolicyError
from lookm.pages import pages_for
from lookm.policy import Recipe, max_rows, nominal_rows, scores
from lookm.types import ModelInfo

Int64 = npt.NDArray[np.int64]
Windows = Sequence[int | None]  # for each layer how many tokens it sees, None for all

TRANSFER_LAYERS = 4  # on their way between a GPU and the prompt store: two in, two out
GPU_SPARE = 0.06  # of what the weights leave, besides the prefill: recorded graphs, libraries

# They divide by T - j, the number of queries that see key j in a causal prompt.
CAUSAL_SCORES = frozenset({scores.column_mean, scores.roco})


@dataclass(frozen=True, slots=True, eq=False)
class KeptRows:
    """Rows of one prompt that each layer keeps, known before the prefill.

    `bound_L` is the most, which admission reserves. `expected_L` is the nominal number: the same,
    but for policies that spread their budget by what the layers show.
    """

    bound_L: Int64
    expected_L: Int64


def kept_rows(
    recipe: Recipe, is_image_T: torch.Tensor, windows_L: Windows, *, causal: bool = True
) -> KeptRows:
    """How many rows each layer keeps of the prompt of `is_image_T`, bool, on the host.

    Layers with a window are never compressed: where the others are, they keep the rows that later
    tokens can still see, `window - 1`, and lose nothing by it. Raises `PolicyError` where `recipe`
    has no meaning for this prompt on this model.
    """
    num_tokens, method = is_image_T.shape[0], recipe.policy.method
    nominal = nominal_rows(recipe, is_image_T)
    if nominal == num_tokens:
        all_L = np.full(len(windows_L), num_tokens, dtype=np.int64)
        return KeptRows(all_L, all_L)
    if not causal and recipe.preset.score in CAUSAL_SCORES:
        raise PolicyError(
            f"{method!r} counts how many queries see a key, as if each token saw only those before "
            "it; on this model tokens of this prompt also see later ones: use 'h2o' or 'look-m'."
        )
    if None not in windows_L:
        raise PolicyError(
            f"{method!r} has nothing to drop: every layer of this model sees a window of recent "
            "tokens only, and such layers are not compressed: use 'full'."
        )
    num_compressed = list(windows_L).count(None)
    bound = max_rows(recipe, is_image_T, num_compressed)
    # Only an adaptive rule may give a layer more than its share: its bounds add up to more.
    expected = bound if sum(bound) == nominal * num_compressed else [nominal] * num_compressed
    return KeptRows(
        _with_windows(bound, windows_L, num_tokens), _with_windows(expected, windows_L, num_tokens)
    )


def _with_windows(kept: Sequence[int], windows_L: Windows, num_tokens: int) -> Int64:
    """`kept` for the layers that see all, in order; the others keep what their window sees."""
    of_others = iter(kept)
    rows = [min(num_tokens, window - 1) if window else next(of_others) for window in windows_L]
    return np.array(rows, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What decides how much of a pool a conversation takes: pages, and each layer's window."""

    page_tokens: int
    page_bytes: int
    windows_L: tuple[int | None, ...]

    @classmethod
    def of(cls, info: ModelInfo) -> "CacheShape":
        """That of a loaded model."""
        page_bytes = info.kv_bytes_per_token * info.page_tokens // info.num_layers
        return cls(info.page_tokens, page_bytes, info.windows or (None,) * info.num_layers)

    @property
    def num_layers(self) -> int:
        return len(self.windows_L)

    def rows(self, prompt_tokens: int, kept: int, answer_tokens: int = 0) -> Int64:
        """Rows of a conversation at its end: `kept` of its prompt, and all of its answer."""
        if kept >= prompt_tokens:
            return np.full(self.num_layers, prompt_tokens + answer_tokens, dtype=np.int64)
        num_compressed = self.windows_L.count(None)
        return _with_windows([kept] * num_compressed, self.windows_L, prompt_tokens) + answer_tokens

    def pages(self, rows_L: Int64) -> int:
        """Whole pages that hold so many rows in each layer."""
        return int((-(-rows_L // self.page_tokens)).sum())

    def bytes(self, rows_L: Int64) -> int:
        """Bytes of those pages."""
        return self.pages(rows_L) * self.page_bytes

    def room(self, rows_L: Int64, capacity_bytes: int, most: int) -> int:
        """How many more rows, up to `most`, each layer of a conversation could have in the pool."""
        return bisect_right(
            range(1, most + 1), capacity_bytes, key=lambda more: self.bytes(rows_L + more)
        )

    def conversations(self, num_pages: int, rows_L: Int64) -> int:
        """How many such conversations `num_pages` hold at once."""
        return num_pages // max(1, self.pages(rows_L))


def conversations_line(
    shape: CacheShape,
    num_pages: int,
    tokens: int,
    max_running: int,
    policies: Mapping[str, int] | None = None,
) -> str:
    """`64 at full, 64 at look-m@0.2 (--max-running 64; pages for 64 and 315)`: what an operator may
    promise for conversations of `tokens`, and what `max_running` withholds of it.

    `policies` name others than full, and how many of the tokens each keeps.
    """
    kept = {"full": tokens}
    if None in shape.windows_L:  # else there is nothing to drop, and no policy but this
        kept |= policies or {"look-m@0.2": max(1, tokens // 5)}
    fit = [shape.conversations(num_pages, shape.rows(tokens, rows)) for rows in kept.values()]
    line = ", ".join(
        f"{min(max_running, each):,} at {policy}" for policy, each in zip(kept, fit, strict=True)
    )
    if max(fit) > max_running:
        pages = " and ".join(filter(None, (", ".join(f"{n:,}" for n in fit[:-1]), f"{fit[-1]:,}")))
        line += f" (--max-running {max_running:,}; pages for {pages})"
    return line


def promised(num_conversations: int, max_running: int) -> str:
    """`64 (105)`: how many of those that pages would hold may run."""
    if num_conversations <= max_running:
        return f"{num_conversations:,}"
    return f"{max_running:,} ({num_conversations:,})"


def enough_pages(config: EngineConfig, context_tokens: int, num_layers: int) -> int:
    """Pages of which no more could ever be in use: everyone running at the full context."""
    return config.max_running * pages_for(context_tokens, config.page_tokens) * num_layers


def longest_prefill_tokens(config: EngineConfig, context_tokens: int) -> int:
    """Tokens of the longest step: a prompt that is looked at runs whole."""
    return max(config.max_step_tokens, context_tokens)


def transfer_bytes(raw_page_bytes: int, page_tokens: int, num_tokens: int) -> int:
    """What the prompt store has on a GPU of a prefill: `TRANSFER_LAYERS` layers of its rows,
    which it keeps as the model has them."""
    return TRANSFER_LAYERS * raw_page_bytes * num_tokens // page_tokens


def gpu_pool_bytes(config: EngineConfig, free_bytes: float, step_bytes: float) -> int:
    """What the pool gets of a GPU; may be negative.

    `free_bytes`: what the weights leave; `step_bytes`: what the most demanding step takes of it.
    """
    return int((1 - GPU_SPARE) * free_bytes - config.image_cache_bytes - step_bytes)
