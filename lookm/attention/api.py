"""The seam: what is asked of attention and its kernels, whatever computes them.

Shapes: B sequences, T query tokens, S rows of keys and values, H query heads, K KV heads, D head
size, P pages, N tokens a page, M pages of the longest sequence. H is a multiple of K, and query
heads `g * H/K .. (g+1) * H/K` read KV head g.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from lookm.pages import Pages, ReadRows, WriteRows
from lookm.types import Needs


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """Sums over query rows of a prompt's attention matrix A, those that `Needs` asked for.

    `sums_KT = sum_i A_ij`, `squares_KT = sum_i A_ij^2`, `window_KT = sum_i A_ij` over the last
    `Needs.window` of the rows only. Per KV head (query heads of a group summed), float32 (float64
    for float64 inputs). A column for every key that the rows see; over a whole prompt each row of
    `sums_KT` adds up to T times the group size. An `Attention` gives these three; what else `Needs`
    can ask for is `spread.measure`'s, but for `dense_K` where an implementation counts it on the
    way: weights of the window's rows that are at least 1 % of their row's largest.
    """

    sums_KT: torch.Tensor | None = None
    squares_KT: torch.Tensor | None = None
    window_KT: torch.Tensor | None = None
    dense_K: torch.Tensor | None = None

    def of_rows(self, first: int) -> "Statistics":
        """The columns from `first` on; without `dense_K`, which has none."""
        columns = (self.sums_KT, self.squares_KT, self.window_KT)
        return Statistics(*(None if part is None else part[:, first:] for part in columns))

    def plus(self, later: "Statistics") -> "Statistics":
        """The sums over these rows and over `later` ones, which see at least as many keys."""
        return Statistics(
            sums_KT=added(self.sums_KT, later.sums_KT),
            squares_KT=added(self.squares_KT, later.squares_KT),
            window_KT=added(self.window_KT, later.window_KT),
            dense_K=added(self.dense_K, later.dense_K),
        )


def added(first_KS: torch.Tensor | None, later_KS: torch.Tensor | None) -> torch.Tensor | None:
    """The sum of two rows of columns; the first may be shorter, or either not there."""
    if first_KS is None or later_KS is None:
        return later_KS if first_KS is None else first_KS
    sum_KS = later_KS.clone()
    sum_KS[..., : first_KS.shape[-1]] += first_KS
    return sum_KS


class Attention(Protocol):
    """How the cache is read. Inputs are never changed; outputs have the queries' dtype."""

    def prefill(
        self,
        q_HTD: torch.Tensor,
        k_KSD: torch.Tensor,
        v_KSD: torch.Tensor,
        *,
        scale: float,
        needs: Needs,
    ) -> tuple[torch.Tensor, Statistics]:
        """Causal attention of T rows, `out_THD`, and the sums that a policy needs of them.

        The T queries are the last of the S rows: query t sees rows `0 .. S - T + t`. A whole prompt
        has S = T; statistics of its parts are added by `Statistics.plus`.
        """

    def prefill_parts(
        self,
        q_HTD: torch.Tensor,
        k_KSD: torch.Tensor,
        v_KSD: torch.Tensor,
        *,
        scale: float,
        ends: Sequence[int],
        needs: Sequence[Needs],
    ) -> tuple[torch.Tensor, list[Statistics]]:
        """`prefill` with statistics apart for each part of the queries: part p ends at `ends[p]`,
        the last at T, and needs `needs[p]`. Its columns are the rows that its queries see.
        """

    def decode(
        self,
        q_BHD: torch.Tensor,
        pages: Pages,
        table_BM: torch.Tensor,
        lengths_B: torch.Tensor,
        *,
        scale: float,
    ) -> torch.Tensor:
        """One query a sequence against the first `lengths_B[b]` rows of its pages; `out_BHD`.

        Row r of sequence b is at `pages[table_BM[b, r // N], :, r % N]`. Table entries past a
        sequence's last page are any valid page. A sequence of length 0 gives 0.
        """


class PartByPart:
    """`prefill_parts` by as many calls of `prefill`."""

    def prefill_parts(
        self: Attention,
        q_HTD: torch.Tensor,
        k_KSD: torch.Tensor,
        v_KSD: torch.Tensor,
        *,
        scale: float,
        ends: Sequence[int],
        needs: Sequence[Needs],
    ) -> tuple[torch.Tensor, list[Statistics]]:
        """See `Attention.prefill_parts`."""
        before = k_KSD.shape[1] - q_HTD.shape[1]
        outs, found = [], []
        for start, end, each in zip((0, *ends), ends, needs, strict=False):
            keys, values = k_KSD[:, : before + end], v_KSD[:, : before + end]
            out_THD, sums = self.prefill(q_HTD[:, start:end], keys, values, scale=scale, needs=each)
            outs.append(out_THD)
            found.append(sums)
        return outs[0] if len(outs) == 1 else torch.cat(outs), found


class MergeKernels(Protocol):
    """Faster versions of `lookm.policy.merges`; None where they cannot run."""

    def nearest(
        self, kept_KSD: torch.Tensor, evicted_KED: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """`merges.nearest_by_cosine`."""

    def combine(
        self,
        rows: Sequence[tuple[torch.Tensor, torch.Tensor]],
        target_KE: torch.Tensor,
        weight_KE: torch.Tensor,
        centre_KS: torch.Tensor,
    ) -> list[torch.Tensor] | None:
        """`merges.combine`, for several pairs of kept and evicted rows that go the same ways."""

    def lengthened(
        self,
        kept_KSD: torch.Tensor,
        evicted_KED: torch.Tensor,
        target_KE: torch.Tensor,
        weight_KE: torch.Tensor,
        centre_KS: torch.Tensor,
        /,
    ) -> torch.Tensor | None:
        """`merges.lengthened`."""


@dataclass(frozen=True, slots=True)
class ModelKernels:
    """What a device does between and inside a model's matrix products (`lookm.models.fast`).

    `rms_norm(x, weight, epsilon)` for rows of up to `max_row`, `rotate(x_TC, cos_TD, sin_TD,
    heads)` in place. With `silu_mul`, `linear` and its `tiles` a whole decoding layer is a few
    launches; without, linear layers are torch's own, packed for this processor, or where it has no
    bfloat16 products `few_rows(x_RI, weight_OI, bias_O or None)` and torch's in float32.
    """

    rms_norm: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
    rotate: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], None]
    max_row: int = 1 << 15
    silu_mul: Callable[[torch.Tensor], torch.Tensor] | None = None
    linear: Callable[..., torch.Tensor] | None = None
    tiles: tuple[Any, ...] = ()
    few_rows: Callable[..., torch.Tensor] | None = None


@dataclass(frozen=True, slots=True)
class Backend:
    """Everything that a device may do faster, chosen once, at start, by `select.choose`.

    `merges` and `model` are None where there is nothing faster than torch. `reads_on_host`: a
    decode step asks the device for lengths, and so cannot be recorded as a CUDA graph.
    """

    name: str
    attention: Attention
    write_rows: WriteRows
    read_rows: ReadRows
    merges: MergeKernels | None = None
    model: ModelKernels | None = None
    reads_on_host: bool = False
