"""The two halves of a merge in Triton: who is nearest, and what becomes of the kept rows.

Contracts (references: `policy.merges.nearest_by_cosine`, `policy.merges.combine`): kept [K, S, D],
evicted [K, E, D], one type; target [K, E] int64 in [0, S), weight [K, E] and centre [K, S] float32.

- `nearest`: tiles of evicted rows against tiles of kept rows with a running maximum; no S x E
  matrix exists. Products are exact, sums float32. Of equals, the first kept row. A row of length
  zero has cosine 0 to everything.
- `combine`: evicted rows are sorted by target (stable), and one program per kept row adds its own:
  no atomics, the same bits every time. A kept row that nobody names is passed on bit for bit.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from lookm.attention.kernels.checks import check_merge
from lookm.attention.kernels.triton_launch import block_of, check_type, on


@triton.jit(do_not_specialize=["num_kept", "num_evicted"])
def _nearest(
    kept, evicted, target, cosine, num_kept, num_evicted,
    D: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    e = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    s, d = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_D)
    inside_D = (d < D)[None, :]
    e_at_ED = (head * num_evicted + e[:, None]) * D + d[None, :]
    e_ED = tl.load(evicted + e_at_ED, mask=(e < num_evicted)[:, None] & inside_D, other=0.0)
    best_E = tl.full([BLOCK_E], float("-inf"), tl.float32)
    where_E = tl.zeros([BLOCK_E], tl.int32)
    for first in range(0, num_kept, BLOCK_S):
        row_S = first + s
        c_at_SD = (head * num_kept + row_S[:, None]) * D + d[None, :]
        c_SD = tl.load(kept + c_at_SD, mask=(row_S < num_kept)[:, None] & inside_D, other=0.0)
        wide_SD = c_SD.to(tl.float32)
        length_S = tl.sqrt(tl.sum(wide_SD * wide_SD, axis=1))
        share_S = tl.where(length_S > 0, 1.0 / tl.where(length_S > 0, length_S, 1.0), 0.0)
        product_ES = tl.dot(e_ED, tl.trans(c_SD), input_precision="ieee") * share_S[None, :]
        product_ES = tl.where((row_S < num_kept)[None, :], product_ES, float("-inf"))
        tile_best_E, tile_where_E = tl.max(
            product_ES, axis=1, return_indices=True, return_indices_tie_break_left=True
        )
        better_E = tile_best_E > best_E
        where_E = tl.where(better_E, first + tile_where_E.to(tl.int32), where_E)
        best_E = tl.where(better_E, tile_best_E, best_E)
    wide_ED = e_ED.to(tl.float32)
    length_E = tl.sqrt(tl.sum(wide_ED * wide_ED, axis=1))
    cosine_E = tl.where(length_E > 0, best_E / tl.where(length_E > 0, length_E, 1.0), 0.0)
    to_E = head * num_evicted + e
    tl.store(target + to_E, where_E.to(tl.int64), mask=e < num_evicted)
    tl.store(cosine + to_E, cosine_E, mask=e < num_evicted)


@triton.jit(do_not_specialize=["num_kept", "num_evicted"])
def _combine(
    kept, evicted, order, starts, weight, centre, out, num_kept, num_evicted,
    D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program per kept row: rows `start .. end` of its head's `order` merge into it."""
    s, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    r, d = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_D)
    own = head * num_kept + s
    start = tl.load(starts + own + head)
    end = tl.load(starts + own + head + 1)
    row_D = tl.load(kept + own * D + d, mask=d < D, other=0.0)
    sum_D = row_D.to(tl.float32) * tl.load(centre + own)
    for first in range(start, end, BLOCK_R):
        place_R = first + r
        real_R = place_R < end
        e_R = tl.load(order + head * num_evicted + place_R, mask=real_R, other=0)
        e_R += head * num_evicted
        weight_R = tl.load(weight + e_R, mask=real_R, other=0.0)
        mask_RD = real_R[:, None] & (d < D)[None, :]
        rows_RD = tl.load(evicted + e_R[:, None] * D + d[None, :], mask=mask_RD, other=0.0)
        sum_D += tl.sum(rows_RD.to(tl.float32) * weight_R[:, None], axis=0)
    merged_D = (sum_D / (end - start + 1).to(tl.float32)).to(row_D.dtype)
    tl.store(out + own * D + d, tl.where(end > start, merged_D, row_D), mask=d < D)


def nearest(kept_KSD: torch.Tensor, evicted_KED: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`target_KE` int64 and `cosine_KE` float32, as `nearest_by_cosine`."""
    _check(kept_KSD, evicted_KED)
    num_heads, num_evicted, size = evicted_KED.shape
    target_KE = torch.empty(num_heads, num_evicted, dtype=torch.int64, device=kept_KSD.device)
    cosine_KE = torch.empty(num_heads, num_evicted, dtype=torch.float32, device=kept_KSD.device)
    block_d = block_of(size)
    block_e, block_s, warps, stages = 32, 32, 4, 2
    if kept_KSD.dtype != torch.float32:
        block_e, block_s, warps, stages = (128, 64, 8, 3) if block_d <= 128 else (64, 32, 4, 2)
    if num_evicted:
        with on(kept_KSD):
            _nearest[(triton.cdiv(num_evicted, block_e), num_heads)](
                kept_KSD.contiguous(), evicted_KED.contiguous(), target_KE, cosine_KE,
                kept_KSD.shape[1], num_evicted,
                D=size, BLOCK_E=block_e, BLOCK_S=block_s, BLOCK_D=block_d,
                num_warps=warps, num_stages=stages,
            )  # fmt: skip
    return target_KE, cosine_KE


def combine(
    rows: Sequence[tuple[torch.Tensor, torch.Tensor]],
    target_KE: torch.Tensor,
    weight_KE: torch.Tensor,
    centre_KS: torch.Tensor,
) -> list[torch.Tensor]:
    """`(centre * kept + sum of weight * evicted) / (n + 1)`, as `merges.combine`; float32 sums.

    `rows` are pairs of kept and evicted rows that go the same ways: sorted once for all.
    """
    check_merge(rows, target_KE, weight_KE, centre_KS)
    num_heads, num_kept = centre_KS.shape
    sorted_KE, order_KE = target_KE.int().sort(dim=1, stable=True)
    edges_KS = torch.arange(num_kept + 1, dtype=torch.int32, device=target_KE.device)
    starts_KS = torch.searchsorted(sorted_KE, edges_KS.repeat(num_heads, 1))
    weight_KE, centre_KS = weight_KE.contiguous(), centre_KS.contiguous()
    combined = []
    for kept_KSD, evicted_KED in rows:
        _check(kept_KSD, evicted_KED)
        size = kept_KSD.shape[2]
        out_KSD = torch.empty(kept_KSD.shape, dtype=kept_KSD.dtype, device=kept_KSD.device)
        with on(kept_KSD):
            _combine[(num_kept, num_heads)](
                kept_KSD.contiguous(), evicted_KED.contiguous(), order_KE, starts_KS,
                weight_KE, centre_KS, out_KSD, num_kept, evicted_KED.shape[1],
                D=size, BLOCK_R=8, BLOCK_D=block_of(size), num_warps=1,
            )  # fmt: skip
        combined.append(out_KSD)
    return combined


def _check(kept_KSD: torch.Tensor, evicted_KED: torch.Tensor) -> None:
    check_type(kept_KSD, evicted_KED)
    assert kept_KSD.shape[::2] == evicted_KED.shape[::2], (kept_KSD.shape, evicted_KED.shape)
    assert kept_KSD.shape[1] > 0, "somebody must be kept"
