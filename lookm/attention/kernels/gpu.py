"""The Triton kernels as an `Attention`, for CUDA; in Triton's interpreter they run on a CPU too.

Every method has its reference in `ReferenceAttention` (or in `lookm.policy.merges`), and no
method falls back to it because a kernel failed: a kernel that cannot run raises. Knows which kernel
does what; the kernels know shapes, strides and types.
"""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from lookm.attention.api import PartByPart, Statistics
from lookm.attention.kernels import triton_decode, triton_flash, triton_merge, triton_sums
from lookm.pages import Pages
from lookm.types import Needs

_HALF = (torch.float16, torch.bfloat16)
CUDNN_TOKENS = 1024  # shorter prompts gain less than padding costs


class TritonAttention(PartByPart):
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

    def lengthened(self, *_: torch.Tensor) -> None:
        """`merges.lengthened` has no kernel here."""

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

    The library's where it can (half precision, heads of a multiple of 8), else the Triton kernel:
    cuDNN's for whole prompts on Hopper and newer, where it takes half as long as torch's flash
    attention, which is used for the rest.
    """
    num_queries, size = q_HTD.shape[1:]
    if not (q_HTD.is_cuda and q_HTD.dtype in _HALF and size % 8 == 0):
        return triton_flash.flash(q_HTD, k_KSD, v_KSD, scale=scale)
    whole = num_queries == k_KSD.shape[1]
    if whole and num_queries >= CUDNN_TOKENS and size <= 128 and _has_cudnn(q_HTD.device):
        return _cudnn(q_HTD, k_KSD, v_KSD, scale)
    # Aligns the causal triangle to the last row, unlike torch's SDPA. Its first two results have
    # been these in every version since 2.1; those after them are not read.
    found = torch.ops.aten._scaled_dot_product_flash_attention(
        q_HTD[None], k_KSD[None], v_KSD[None], 0.0, True, False, scale=scale
    )
    out_THD: torch.Tensor = found[0][0].transpose(0, 1)
    lse_HT: torch.Tensor = found[1][0, :, :num_queries].contiguous()
    return out_THD, lse_HT


def _cudnn(
    q_HTD: torch.Tensor, k_KTD: torch.Tensor, v_KTD: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """A whole prompt, in one of few lengths: cuDNN takes 43 ms to plan one it has not seen.

    What is over stands behind the last token, and no token sees it.
    """
    num_tokens = q_HTD.shape[1]
    over = few_lengths(num_tokens) - num_tokens
    rows = [q_HTD[None], k_KTD[None], v_KTD[None]]
    if over:
        rows = [F.pad(each, (0, 0, 0, over)) for each in rows]
    found = torch.ops.aten._scaled_dot_product_cudnn_attention(
        *rows, None, True, 0.0, True, False, scale=scale
    )
    out_THD: torch.Tensor = found[0][0, :, :num_tokens].transpose(0, 1)
    lse_HT: torch.Tensor = found[1].view(len(q_HTD), -1)[:, :num_tokens].contiguous()
    return out_THD, lse_HT


def few_lengths(num_tokens: int) -> int:
    """`num_tokens` rounded up to one of eight lengths between a power of two and the next.

    Examples: 1024 stays, 1025 is 1152, 4097 is 4608.
    """
    step = 1 << max(0, (num_tokens - 1).bit_length() - 4)
    return -(-num_tokens // step) * step


@functools.cache
def _has_cudnn(device: torch.device) -> bool:
    """Whether cuDNN's attention is there, and made for this device."""
    version = torch.backends.cudnn.version() or 0  # type: ignore[no-untyped-call]
    return version >= 90000 and torch.cuda.get_device_capability(device) >= (9, 0)
