"""Column sums of a prompt's attention matrix, from the log-sum-exp that flash attention leaves.

Contract (twins: `Statistics` of `reference.ReferenceAttention.prefill`, `reference.window_sums`):
q [H, T, D], k [K, T, D], D dense, one type; lse [H, T] float32 contiguous, natural logarithm.
`sums [K, T] = sum_i A_ij` over rows i >= first_row, squares alike, float32, query heads of a group
summed. One program per (tile of keys, KV head) goes down its own columns, so nothing is added by
two programs: no atomics, the same bits every time.

    keys ->   j j j j . . . .     a program owns four columns and starts at the diagonal,
    queries   x                   or at `first_row` where that is lower (SnapKV's window)
              x x
              x x x x  |
              x x x x  v
"""

import torch
import triton
import triton.language as tl

from lookm.attention.kernels.triton_launch import LOG2E, block_of, check_type, dense_rows, on


@triton.jit(do_not_specialize=["num_tokens", "first_row"])
def _sums(
    q, k, lse, sums, squares, scale_log2, num_tokens, first_row,
    q_stride_h, q_stride_t, k_stride_h, k_stride_t, LOG2E_: tl.constexpr,
    G: tl.constexpr, D: tl.constexpr, SQUARES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    first, kv_head = tl.program_id(0) * BLOCK_N, tl.program_id(1).to(tl.int64)
    j, m, d = first + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    inside_D = (d < D)[None, :]
    k_at_ND = kv_head * k_stride_h + j[:, None] * k_stride_t + d[None, :]
    k_ND = tl.load(k + k_at_ND, mask=(j < num_tokens)[:, None] & inside_D, other=0.0)
    sums_N = tl.zeros([BLOCK_N], tl.float32)
    squares_N = tl.zeros([BLOCK_N], tl.float32)
    start_row = tl.maximum(first, first_row) // BLOCK_M * BLOCK_M
    for g in range(G):
        head = kv_head * G + g
        for start in range(start_row, num_tokens, BLOCK_M):
            i = start + m
            real_M = (i < num_tokens) & (i >= first_row)
            q_at_MD = head * q_stride_h + i[:, None] * q_stride_t + d[None, :]
            q_MD = tl.load(q + q_at_MD, mask=real_M[:, None] & inside_D, other=0.0)
            lse_M = tl.load(lse + head * num_tokens + i, mask=real_M, other=0.0) * LOG2E_
            logits_MN = tl.dot(q_MD, tl.trans(k_ND), input_precision="ieee") * scale_log2
            seen_MN = (i[:, None] >= j[None, :]) & real_M[:, None]
            weight_MN = tl.where(seen_MN, tl.exp2(logits_MN - lse_M[:, None]), 0.0)
            sums_N += tl.sum(weight_MN, axis=0)
            if SQUARES:
                squares_N += tl.sum(weight_MN * weight_MN, axis=0)
    to_N = kv_head * num_tokens + j
    tl.store(sums + to_N, sums_N, mask=j < num_tokens)
    if SQUARES:
        tl.store(squares + to_N, squares_N, mask=j < num_tokens)


def column_sums(
    q_HTD: torch.Tensor,
    k_KTD: torch.Tensor,
    lse_HT: torch.Tensor,
    *,
    scale: float,
    squares: bool = False,
    first_row: int = 0,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`sums_KT`, and `squares_KT` where asked for, over the queries from `first_row` on."""
    check_type(q_HTD, k_KTD)
    num_heads, num_tokens, size = q_HTD.shape
    assert k_KTD.shape[1:] == q_HTD.shape[1:], (q_HTD.shape, k_KTD.shape)
    assert num_heads % k_KTD.shape[0] == 0, (q_HTD.shape, k_KTD.shape)
    assert lse_HT.shape == (num_heads, num_tokens), lse_HT.shape
    assert lse_HT.dtype == torch.float32, lse_HT.dtype
    assert lse_HT.is_contiguous(), "the log-sum-exp must be contiguous"
    assert 0 <= first_row <= num_tokens, (first_row, num_tokens)
    q_HTD, k_KTD = dense_rows(q_HTD), dense_rows(k_KTD)
    sums_KT = torch.empty(k_KTD.shape[:2], dtype=torch.float32, device=k_KTD.device)
    squares_KT = torch.empty_like(sums_KT) if squares else None
    block_d = block_of(size)
    block = 64 if block_d <= 128 and q_HTD.dtype != torch.float32 else 32
    with on(q_HTD):
        _sums[(triton.cdiv(num_tokens, block), k_KTD.shape[0])](
            q_HTD, k_KTD, lse_HT, sums_KT, sums_KT if squares_KT is None else squares_KT,
            scale * LOG2E, num_tokens, first_row, *q_HTD.stride()[:2], *k_KTD.stride()[:2],
            LOG2E_=LOG2E, G=num_heads // k_KTD.shape[0], D=size, SQUARES=squares,
            BLOCK_M=block, BLOCK_N=block, BLOCK_D=block_d, num_warps=4, num_stages=2,
        )  # fmt: skip
    return sums_KT, squares_KT
