"""The C++ kernels as an `Attention`: checked and called here, built by `build`.

What they must equal: `reference.ReferenceAttention` (decode, prefill with sums) and
`lookm.policy.merges` (nearest_by_cosine, combine). Knows shapes, strides and types; whether the
kernels are used at all is `select.choose`'s decision.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from lookm.attention.api import PartByPart, Statistics
from lookm.attention.kernels.checks import check_merge
from lookm.attention.kernels.cpu_pages import TYPES, check_rows, tensors_of
from lookm.attention.reference import ReferenceAttention
from lookm.pages import Pages
from lookm.types import Needs


class CpuAttention(PartByPart):
    """`Attention` and `MergeKernels` with the hot loops in C++ and everything else in torch.

    The kernels over matrix products take bfloat16; float32 takes the reference.
    """

    def __init__(self, extension: Any) -> None:
        self._extension = extension
        self._reference = ReferenceAttention()
        self._library: bool = extension.library_multiplies()

    def prefill(
        self,
        q_HTD: torch.Tensor,
        k_KSD: torch.Tensor,
        v_KSD: torch.Tensor,
        *,
        scale: float,
        needs: Needs,
    ) -> tuple[torch.Tensor, Statistics]:
        """Output and column sums in one pass over the logits. See `Attention.prefill`.

        Without sums torch's own is as good, where it multiplies bfloat16 (AMX); elsewhere not.
        """
        num_queries, num_rows = q_HTD.shape[1], k_KSD.shape[1]
        plain = num_queries == num_rows and not _num_sums(needs)
        if not self._multiplies(k_KSD) or (plain and self._library):
            return self._reference.prefill(q_HTD, k_KSD, v_KSD, scale=scale, needs=needs)
        ends, parts, by_parts = [num_queries], [needs], self.prefill_parts
        only_window = not (needs.sums or needs.squares) and num_queries > needs.window
        if self._library and num_queries == num_rows and only_window:
            ends = [num_queries - needs.window, num_queries]
            parts = [replace(needs, window=0, density=False), needs]
            by_parts = super().prefill_parts
        out_THD, found = by_parts(q_HTD, k_KSD, v_KSD, scale=scale, ends=ends, needs=parts)
        return out_THD, found[-1]

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
        """All parts in one pass: keys and values are packed once. See `Attention.prefill_parts`."""
        if not self._multiplies(k_KSD):
            return super().prefill_parts(q_HTD, k_KSD, v_KSD, scale=scale, ends=ends, needs=needs)
        _check_prompt(q_HTD, k_KSD, v_KSD)
        # The rows of a window are a part of their own, so that their sums stand alone.
        pieces: list[tuple[int, Needs, bool]] = []
        start = 0
        for end, each in zip(ends, needs, strict=True):
            first = max(start, end - each.window) if each.window else end
            if start < first < end:
                pieces.append((first, replace(each, window=0, density=False), False))
            pieces.append((end, each, True))
            start = end
        out_THD, sums_NPKS, dense_PK = self._extension.prefill(
            *(_dense(rows) for rows in (q_HTD, k_KSD, v_KSD)),
            scale,
            max(_num_sums(each) for each in needs),
            [end for end, _, _ in pieces],
            [_num_sums(each) for _, each, _ in pieces],
        )
        before = k_KSD.shape[1] - q_HTD.shape[1]
        found, rest = [], Statistics()
        for p, (end, each, completes) in enumerate(pieces):
            sums_NKS = sums_NPKS[:, p, :, : before + end]
            here = Statistics(
                sums_KT=sums_NKS[0] if each.sums or each.squares else None,
                squares_KT=sums_NKS[1] if each.squares else None,
                window_KT=sums_NKS[0] if each.window else None,
                dense_K=dense_PK[p] if each.density else None,
            )
            rest = rest.plus(here)
            if completes:
                found.append(rest)
                rest = Statistics()
        return out_THD, found

    def nearest(
        self, kept_KSD: torch.Tensor, evicted_KED: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """`merges.nearest_by_cosine`, or None for keys that are not bfloat16."""
        if not self._multiplies(kept_KSD):
            return None
        assert kept_KSD.shape[::2] == evicted_KED.shape[::2], (kept_KSD.shape, evicted_KED.shape)
        assert evicted_KED.dtype == kept_KSD.dtype, evicted_KED.dtype
        target_KE, cosine_KE = self._extension.nearest(
            kept_KSD.contiguous(), evicted_KED.contiguous()
        )
        return target_KE, cosine_KE

    def combine(
        self,
        rows: Sequence[tuple[torch.Tensor, torch.Tensor]],
        target_KE: torch.Tensor,
        weight_KE: torch.Tensor,
        centre_KS: torch.Tensor,
    ) -> list[torch.Tensor] | None:
        """`merges.combine` of each, for bfloat16 rows."""
        if any(kept_KSD.dtype != torch.bfloat16 for kept_KSD, _ in rows):
            return None
        check_merge(rows, target_KE, weight_KE, centre_KS)
        ways = [part.contiguous() for part in (target_KE, weight_KE, centre_KS)]
        return [
            self._extension.combine(kept_KSD.contiguous(), evicted_KED.contiguous(), *ways, False)
            for kept_KSD, evicted_KED in rows
        ]

    def lengthened(
        self,
        kept_KSD: torch.Tensor,
        evicted_KED: torch.Tensor,
        target_KE: torch.Tensor,
        weight_KE: torch.Tensor,
        centre_KS: torch.Tensor,
    ) -> torch.Tensor | None:
        """`merges.lengthened`, for bfloat16 rows."""
        if kept_KSD.dtype != torch.bfloat16:
            return None
        check_merge([(kept_KSD, evicted_KED)], target_KE, weight_KE, centre_KS)
        ways = [part.contiguous() for part in (target_KE, weight_KE, centre_KS)]
        merged_KSD: torch.Tensor = self._extension.combine(
            kept_KSD.contiguous(), evicted_KED.contiguous(), *ways, True
        )
        return merged_KSD

    def _multiplies(self, key_KTD: torch.Tensor) -> bool:
        """Whether the kernels over matrix products take these keys."""
        even = key_KTD.shape[2] % 2 == 0
        return even and key_KTD.dtype == torch.bfloat16

    def decode(
        self,
        q_BHD: torch.Tensor,
        pages: Pages,
        table_BM: torch.Tensor,
        lengths_B: torch.Tensor,
        *,
        scale: float,
    ) -> torch.Tensor:
        """Each page read once, in place, by all query heads of its KV head's group."""
        _check(q_BHD, pages, table_BM, lengths_B)
        out_BHD: torch.Tensor = self._extension.paged_decode(
            q_BHD.contiguous(), *tensors_of(pages), table_BM, lengths_B, scale
        )
        return out_BHD


def _num_sums(needs: Needs) -> int:
    """Which of sums and squares the kernel is to give."""
    return 2 if needs.squares else 1 if needs.sums or needs.window or needs.density else 0


def _dense(row_HTD: torch.Tensor) -> torch.Tensor:
    """The same rows; copied only where the numbers of a row do not lie side by side."""
    return row_HTD if row_HTD.stride(2) == 1 else row_HTD.contiguous()


def _check_prompt(q_HTD: torch.Tensor, k_KSD: torch.Tensor, v_KSD: torch.Tensor) -> None:
    heads, num_queries, size = q_HTD.shape
    assert k_KSD.shape == v_KSD.shape, (k_KSD.shape, v_KSD.shape)
    assert k_KSD.shape[2] == size, (k_KSD.shape, q_HTD.shape)
    assert 1 <= num_queries <= k_KSD.shape[1], "the queries' own rows are the last rows"
    assert heads % k_KSD.shape[0] == 0, (heads, k_KSD.shape)
    assert q_HTD.dtype == k_KSD.dtype == v_KSD.dtype == torch.bfloat16, q_HTD.dtype


def _check(
    q_BHD: torch.Tensor, pages: Pages, table_BM: torch.Tensor, lengths_B: torch.Tensor
) -> None:
    """The kernel trusts what is asserted here; it never reads outside a page it was given."""
    batch, heads, size = q_BHD.shape
    assert q_BHD.dtype in TYPES, q_BHD.dtype
    check_rows(pages, q_BHD, q_BHD)
    pages.check(heads, size)
    assert table_BM.dtype == torch.int32, table_BM.dtype
    assert table_BM.is_contiguous()
    assert table_BM.shape[0] == batch == lengths_B.shape[0]
    assert lengths_B.dtype == torch.int64, lengths_B.dtype
