"""Causal attention of many queries, with its log-sum-exp, where torch has no kernel for it.

Contract (reference: softmax(q k^T scale) v by hand): q [H, T, D], k and v [K, S, D], D dense, one
type; query t sees rows 0 .. S - T + t (a whole prompt where S = T); out [T, H, D] of that type, lse
[H, T] float32, natural logarithm. In half precision with heads of a multiple of 8 on CUDA, torch's
own flash attention is faster and gives the same two (`gpu.TritonAttention`); this one takes float32
and every head size up to 256.
"""

import math

import torch
import triton
import triton.language as tl

from lookm.attention.kernels.triton_launch import LOG2E, block_of, check_type, dense_rows, on


@triton.jit(do_not_specialize=["num_tokens", "num_rows"])
def _flash(
    q, k, v, out, lse, scale_log2, num_tokens, num_rows,
    q_stride_h, q_stride_t, k_stride_h, k_stride_t, v_stride_h, v_stride_t,
    G: tl.constexpr, D: tl.constexpr, LN2: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program per tile of queries and query head; it loops over the keys they see."""
    first, head = tl.program_id(0) * BLOCK_M, tl.program_id(1).to(tl.int64)
    i, n, d = first + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    inside_D = (d < D)[None, :]
    real_M = i < num_tokens
    at_MD = head * q_stride_h + i[:, None] * q_stride_t + d[None, :]
    q_MD = tl.load(q + at_MD, mask=real_M[:, None] & inside_D, other=0.0)
    kv_head, before = head // G, num_rows - num_tokens
    top_M = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total_M = tl.zeros([BLOCK_M], tl.float32)
    out_MD = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(0, tl.minimum(before + first + BLOCK_M, num_rows), BLOCK_N):
        j = start + n
        mask_ND = (j < num_rows)[:, None] & inside_D
        k_at_ND = kv_head * k_stride_h + j[:, None] * k_stride_t + d[None, :]
        v_at_ND = kv_head * v_stride_h + j[:, None] * v_stride_t + d[None, :]
        k_ND = tl.load(k + k_at_ND, mask=mask_ND, other=0.0)
        v_ND = tl.load(v + v_at_ND, mask=mask_ND, other=0.0)
        logits_MN = tl.dot(q_MD, tl.trans(k_ND), input_precision="ieee") * scale_log2
        logits_MN = tl.where(before + i[:, None] >= j[None, :], logits_MN, float("-inf"))
        new_top_M = tl.maximum(top_M, tl.max(logits_MN, axis=1))
        fade_M = tl.exp2(top_M - new_top_M)
        weight_MN = tl.exp2(logits_MN - new_top_M[:, None])
        total_M = total_M * fade_M + tl.sum(weight_MN, axis=1)
        new_MD = tl.dot(weight_MN.to(v_ND.dtype), v_ND, input_precision="ieee")
        out_MD = out_MD * fade_M[:, None] + new_MD
        top_M = new_top_M
    out_MD = out_MD / total_M[:, None]
    to_MD = (i[:, None].to(tl.int64) * tl.num_programs(1) + head) * D + d[None, :]
    tl.store(out + to_MD, out_MD.to(out.dtype.element_ty), mask=real_M[:, None] & inside_D)
    tl.store(lse + head * num_tokens + i, (top_M + tl.log2(total_M)) * LN2, mask=real_M)


def flash(
    q_HTD: torch.Tensor, k_KSD: torch.Tensor, v_KSD: torch.Tensor, *, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`out_THD` and `lse_HT`. The first key of a row is always seen, so no row is empty."""
    check_type(q_HTD, k_KSD, v_KSD)
    num_heads, num_tokens, size = q_HTD.shape
    assert k_KSD.shape == v_KSD.shape, (k_KSD.shape, v_KSD.shape)
    assert k_KSD.shape[2] == size, (q_HTD.shape, k_KSD.shape)
    assert k_KSD.shape[1] >= num_tokens, "the queries' own rows are the last rows"
    assert num_heads % k_KSD.shape[0] == 0, (q_HTD.shape, k_KSD.shape)
    q_HTD, k_KSD, v_KSD = dense_rows(q_HTD), dense_rows(k_KSD), dense_rows(v_KSD)
    device = q_HTD.device
    out_THD = torch.empty(num_tokens, num_heads, size, dtype=q_HTD.dtype, device=device)
    lse_HT = torch.empty(num_heads, num_tokens, dtype=torch.float32, device=device)
    block_d = block_of(size)
    block = 64 if block_d <= 128 and q_HTD.dtype != torch.float32 else 32
    stages = 1 if block_d * q_HTD.dtype.itemsize > 512 else 2
    with on(q_HTD):
        _flash[(triton.cdiv(num_tokens, block), num_heads)](
            q_HTD, k_KSD, v_KSD, out_THD, lse_HT, scale * LOG2E, num_tokens, k_KSD.shape[1],
            *q_HTD.stride()[:2], *k_KSD.stride()[:2], *v_KSD.stride()[:2],
            G=num_heads // k_KSD.shape[0], D=size, LN2=math.log(2),
            BLOCK_M=block, BLOCK_N=block, BLOCK_D=block_d,
            num_warps=4 if block == 64 else 8, num_stages=stages,
        )  # fmt: skip
    return out_THD, lse_HT
