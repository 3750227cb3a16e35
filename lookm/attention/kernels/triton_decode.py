"""Paged decode attention in Triton: each page read once, in place, by its whole head group.

Contract (reference: `reference.ReferenceAttention.decode`): q [B, H, D], pages [P, K, N, D]
contiguous, one type of float16, bfloat16 and float32; table [B, M] int32 and lengths [B] int32 or
int64, on the device and never read by the host, so that the launch can be part of a CUDA graph.
Sums are float32. Pages may be int8 or float8_e4m3fn, with scales [P, K, N] float32 of their rows: a
key's is multiplied to its logits, a value's to its numbers.

Split over rows ("flash-decoding"): one program per (sequence, KV head, split) makes a partial
softmax of its share of the rows, a second kernel adds the splits up. Sequence of 10 rows, blocks of
4, 2 splits: rows 0-7 and 8-9. A split without rows weighs nothing; length 0 gives 0.
"""

import torch
import triton
import triton.language as tl

from lookm.attention.kernels.triton_launch import LOG2E, block_of, check_type, on
from lookm.pages import Pages

WANTED_PROGRAMS = 1056  # 8 for each of an H200's 132 multiprocessors; measured beside 16 and 32
MAX_SPLITS = 32
STAGES = 3  # of the loads, page numbers included: what comes next is on its way


@triton.jit(do_not_specialize=["table_stride"])
def _split(
    q, k, v, k_scale, v_scale, table, lengths, part, top, total, scale_log2,
    q_stride_b, q_stride_h, table_stride, page_stride, head_stride,
    G: tl.constexpr, D: tl.constexpr, N: tl.constexpr, SPLITS: tl.constexpr, SCALED: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The partial softmax of one split: unnormalised `part`, its maximum `top`, its sum `total`."""
    b, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + b)
    rows = tl.cdiv(tl.cdiv(length, SPLITS), BLOCK_R) * BLOCK_R
    start = split * rows
    end = tl.minimum(start + rows, length)
    g, d, r = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_R)
    inside_D = d < D
    q_GD = tl.load(
        q + b * q_stride_b + (head * G + g)[:, None] * q_stride_h + d[None, :],
        mask=(g < G)[:, None] & inside_D[None, :],
        other=0.0,
    )
    top_G = tl.full([BLOCK_G], float("-inf"), tl.float32)
    total_G = tl.zeros([BLOCK_G], tl.float32)
    part_GD = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    for first in tl.range(start, end, BLOCK_R, num_stages=STAGES):
        row_R = first + r
        real_R = row_R < end
        page_R = tl.load(table + b * table_stride + row_R // N, mask=real_R, other=0).to(tl.int64)
        at_R = page_R * page_stride + head * head_stride + (row_R % N) * D
        mask_RD = real_R[:, None] & inside_D[None, :]
        k_RD = tl.load(k + at_R[:, None] + d[None, :], mask=mask_RD, other=0.0)
        v_RD = tl.load(v + at_R[:, None] + d[None, :], mask=mask_RD, other=0.0)
        if SCALED:
            # A head's scales lie as its rows do, a number each instead of D.
            at_scale_R = (page_R * page_stride + head * head_stride) // D + row_R % N
            k_RD = k_RD.to(q_GD.dtype)
            v_scale_R = tl.load(v_scale + at_scale_R, mask=real_R, other=0.0)
            v_RD = (v_RD.to(tl.float32) * v_scale_R[:, None]).to(q_GD.dtype)
        if BLOCK_G == 1:
            logits_GR = tl.sum(q_GD.to(tl.float32) * k_RD.to(tl.float32), axis=1)[None, :]
        else:
            logits_GR = tl.dot(q_GD, tl.trans(k_RD), input_precision="ieee")
        if SCALED:
            logits_GR *= tl.load(k_scale + at_scale_R, mask=real_R, other=0.0)[None, :]
        logits_GR = tl.where(real_R[None, :], logits_GR * scale_log2, float("-inf"))
        new_top_G = tl.maximum(top_G, tl.max(logits_GR, axis=1))
        fade_G = tl.exp2(top_G - new_top_G)
        weight_GR = tl.exp2(logits_GR - new_top_G[:, None])
        total_G = total_G * fade_G + tl.sum(weight_GR, axis=1)
        if BLOCK_G == 1:
            weight_R = tl.sum(weight_GR, axis=0)
            new_1D = tl.sum(weight_R[:, None] * v_RD.to(tl.float32), axis=0)[None, :]
            part_GD = part_GD * fade_G[:, None] + new_1D
        else:
            new_GD = tl.dot(weight_GR.to(v_RD.dtype), v_RD, input_precision="ieee")
            part_GD = part_GD * fade_G[:, None] + new_GD
        top_G = new_top_G
    place_G = ((b * tl.num_programs(1) + head) * G + g) * SPLITS + split
    tl.store(top + place_G, top_G, mask=g < G)
    tl.store(total + place_G, total_G, mask=g < G)
    real_GD = ((g < G) & (start < end))[:, None] & inside_D[None, :]
    tl.store(part + place_G[:, None].to(tl.int64) * D + d[None, :], part_GD, mask=real_GD)


@triton.jit
def _add_up(
    part, top, total, out,
    D: tl.constexpr, SPLITS: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program per query head: its splits, each faded to the maximum of all."""
    row = tl.program_id(0)
    s, d = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_D)
    top_S = tl.load(top + row * SPLITS + s, mask=s < SPLITS, other=float("-inf"))
    total_S = tl.load(total + row * SPLITS + s, mask=s < SPLITS, other=0.0)
    highest = tl.max(top_S, axis=0)
    highest = tl.where(highest > float("-inf"), highest, 0.0)
    fade_S = tl.where(total_S > 0, tl.exp2(top_S - highest), 0.0)
    real_SD = (total_S > 0)[:, None] & (d < D)[None, :]
    place_S = (row * SPLITS + s).to(tl.int64)
    part_SD = tl.load(part + place_S[:, None] * D + d[None, :], mask=real_SD, other=0.0)
    sum_D = tl.sum(part_SD * fade_S[:, None], axis=0)
    weight = tl.sum(total_S * fade_S, axis=0)
    out_D = sum_D / tl.where(weight > 0, weight, 1.0)
    tl.store(out + row.to(tl.int64) * D + d, out_D.to(out.dtype.element_ty), mask=d < D)


def decode(
    q_BHD: torch.Tensor,
    pages: Pages,
    table_BM: torch.Tensor,
    lengths_B: torch.Tensor,
    *,
    scale: float,
) -> torch.Tensor:
    """`Attention.decode`. Nothing but shapes is read by the host."""
    check(q_BHD, pages, table_BM, lengths_B)
    k_PKND, v_PKND = pages.k_PKND, pages.v_PKND
    batch, num_heads, size = q_BHD.shape
    num_kv_heads, page_tokens = k_PKND.shape[1:3]
    group = num_heads // num_kv_heads
    q_BHD = q_BHD if q_BHD.stride(2) == 1 else q_BHD.contiguous()
    out_BHD = torch.empty(q_BHD.shape, dtype=q_BHD.dtype, device=q_BHD.device)
    if batch == 0:
        return out_BHD
    splits = num_splits(batch * num_kv_heads)
    partial = (batch, num_heads, splits)
    part = torch.empty((*partial, size), dtype=torch.float32, device=q_BHD.device)
    top = torch.empty(partial, dtype=torch.float32, device=q_BHD.device)
    total = torch.empty_like(top)
    block_d = block_of(size)
    # One query a head is made sixteen, of which fifteen are masked: as a matrix product a tile is
    # four times as fast as by multiplying and adding up, on an H200. Not so in float32.
    alone = group == 1 and q_BHD.dtype == torch.float32
    block_r = 16 if alone else 32 if block_d > 128 else 64
    with on(q_BHD):
        _split[(batch, num_kv_heads, splits)](
            q_BHD, k_PKND, v_PKND, pages.k_scale_PKN, pages.v_scale_PKN, table_BM, lengths_B,
            part, top, total, scale * LOG2E,
            q_BHD.stride(0), q_BHD.stride(1), table_BM.stride(0),
            k_PKND.stride(0), k_PKND.stride(1),
            G=group, D=size, N=page_tokens, SPLITS=splits, SCALED=pages.scaled,
            BLOCK_G=1 if alone else block_of(group),
            BLOCK_D=block_d, BLOCK_R=block_r, STAGES=STAGES, num_warps=4,
        )  # fmt: skip
        _add_up[(batch * num_heads,)](
            part, top, total, out_BHD,
            D=size, SPLITS=splits, BLOCK_S=triton.next_power_of_2(splits), BLOCK_D=block_d,
            num_warps=4,
        )  # fmt: skip
    return out_BHD


def num_splits(programs: int) -> int:
    """As many as `WANTED_PROGRAMS` allows, a power of two; by shapes alone: graphs keep them."""
    allowed = max(1, WANTED_PROGRAMS // programs)
    return min(MAX_SPLITS, 1 << (allowed.bit_length() - 1))


def check(
    q_BHD: torch.Tensor, pages: Pages, table_BM: torch.Tensor, lengths_B: torch.Tensor
) -> None:
    """The kernel trusts what is asserted here. Page numbers are trusted to be pages."""
    batch, heads, size = q_BHD.shape
    check_type(q_BHD, *(() if pages.scaled else (pages.k_PKND, pages.v_PKND)))
    pages.check(heads, size)
    assert table_BM.dtype == torch.int32, table_BM.dtype
    assert table_BM.stride(1) == 1, "a table row must be contiguous"
    assert lengths_B.dtype in (torch.int32, torch.int64), lengths_B.dtype
    assert lengths_B.is_contiguous(), "lengths must be contiguous"
    assert table_BM.shape[0] == batch == lengths_B.shape[0], (batch, table_BM.shape)
    assert table_BM.device == lengths_B.device == pages.device, "one device for all"
