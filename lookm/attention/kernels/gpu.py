"""The Triton kernels as an `Attention`, for CUDA; in Triton's interpreter they run on a CPU too.

Every method has its reference in `ReferenceAttention` (or in `lookm.policy.merges`), and no
method falls back to it because a kernel failed: a kernel that cannot run raises. Knows which kernel
does what; the kernels know shapes, strides and types.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from lookm.attention.api import Statistics
from lookm.attention.kernels import triton_decode, triton_flash, triton_merge, triton_sums
from lookm.pages import Pages
from lookm.types import Needs

_HALF = (torch.float16, torch.bfloat16)


class TritonAttention:
    """`Attention` and `MergeKernels`: float16, bfloat16 and float32, heads of up to 256."""

    def prefill(
        self,
        q_HTD: torch.Tensor,
        k_KSD: torch.Tensor,
        v_KSD: torch.Tensor,
        *,
        scale: float,
        needs: Needs,
    ) -> tuple[torch.Tensor, Statistics]:
        """Flash attention, then the column sums from its log-sum-exp. See `Attention.prefill`."""
        wants_sums, num_queries = needs.sums or needs.squares, q_HTD.shape[1]
        if not (wants_sums or needs.window) and num_queries == k_KSD.shape[1]:
            out_HTD = F.scaled_dot_product_attention(
                q_HTD[None], k_KSD[None], v_KSD[None], is_causal=True, scale=scale, enable_gqa=True
            )[0]
            return out_HTD.transpose(0, 1), Statistics()
        out_THD, lse_HT = flash(q_HTD, k_KSD, v_KSD, scale=scale)
        sums_KS = squares_KS = window_KS = None
        if wants_sums:
            sums_KS, squares_KS = triton_sums.column_sums(
                q_HTD, k_KSD, lse_HT, scale=scale, squares=needs.squares
            )
        if needs.window:
            first_row = max(0, num_queries - needs.window)
            window_KS, _ = triton_sums.column_sums(
                q_HTD, k_KSD, lse_HT, scale=scale, first_row=first_row
            )
        return out_THD, Statistics(sums_KT=sums_KS, squares_KT=squares_KS, window_KT=window_KS)

    def nearest(
        self, kept_KSD: torch.Tensor, evicted_KED: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """`merges.nearest_by_cosine`."""
        return triton_merge.nearest(kept_KSD, evicted_KED)

    def combine(
        self,
        rows: Sequence[tuple[torch.Tensor, torch.Tensor]],
        target_KE: torch.Tensor,
        weight_KE: torch.Tensor,
        centre_KS: torch.Tensor,
    ) -> list[torch.Tensor] | None:
        """`merges.combine` of each."""
        return triton_merge.combine(rows, target_KE, weight_KE, centre_KS)

    def decode(
        self,
        q_BHD: torch.Tensor,
        pages: Pages,
        table_BM: torch.Tensor,
        lengths_B: torch.Tensor,
        *,
        scale: float,
    ) -> torch.Tensor:
        """Split over rows. See `Attention.decode`."""
        return triton_decode.decode(q_BHD, pages, table_BM, lengths_B, scale=scale)


def flash(
    q_HTD: torch.Tensor, k_KSD: torch.Tensor, v_KSD: torch.Tensor, *, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`out_THD` and `lse_HT`; query t sees rows `0 .. S - T + t`.

    torch's flash attention where it can (half precision, heads of a multiple of 8), else the Triton
    kernel. torch's aligns the causal triangle to the last row as well, unlike its SDPA. Its first
    two results have been these in every version since 2.1; those after them are not read.
    """
    if not (q_HTD.is_cuda and q_HTD.dtype in _HALF and q_HTD.shape[2] % 8 == 0):
        return triton_flash.flash(q_HTD, k_KSD, v_KSD, scale=scale)
    found = torch.ops.aten._scaled_dot_product_flash_attention(
        q_HTD[None], k_KSD[None], v_KSD[None], 0.0, True, False, scale=scale
    )
    out_THD: torch.Tensor = found[0][0].transpose(0, 1)
    lse_HT: torch.Tensor = found[1][0, :, : q_HTD.shape[1]].contiguous()
    return out_THD, lse_HT
