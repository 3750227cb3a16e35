"""Column sums of a prompt's attention matrix, from the log-sum-exp that flash attention leaves.

Contract (references: `Statistics` of `reference.ReferenceAttention.prefill`,
`reference.window_sums`): q [H, T, D], k [K, S, D], D dense, one type; lse [H, T] float32
contiguous, natural logarithm. The T queries are the last of the S rows (a whole prompt where S =
T). `sums [K, S] = sum_i A_ij` over queries i >= first_row, squares alike, float32, query heads of a
group summed. One program per (tile of keys, KV head) goes down its own columns, so nothing is added
by two programs: no atomics, the same bits every time.

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


@triton.jit
def _add_rows(
    sums_MN, squares_MN, q, lse, k_ND, start, end, first, first_row, before, num_rows, scale_log2,
    q_stride_t, LOG2E_: tl.constexpr, D: tl.constexpr, SQUARES: tl.constexpr,
    DIAGONAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Add the weights of rows `start .. end` of one head; `DIAGONAL`: not every one sees them all.

    Rows are counted as keys are: query 0 is row `before`. Rows that do not count have a log-sum-exp
    of infinity, and so weigh nothing.
    """
    m, d, j = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D), first + tl.arange(0, BLOCK_N)
    for row in range(start, end, BLOCK_M):
        i = row + m
        real_M = (i < num_rows) & (i >= first_row)
        q_at_MD = (i - before)[:, None] * q_stride_t + d[None, :]
        q_MD = tl.load(q + q_at_MD, mask=real_M[:, None] & (d < D)[None, :], other=0.0)
        lse_M = tl.load(lse + i - before, mask=real_M, other=float("inf")) * LOG2E_
        logits_MN = tl.dot(q_MD, tl.trans(k_ND), input_precision="ieee")
        weight_MN = tl.exp2(logits_MN * scale_log2 - lse_M[:, None])
        if DIAGONAL:
            weight_MN = tl.where(i[:, None] >= j[None, :], weight_MN, 0.0)
        sums_MN += weight_MN
        if SQUARES:
            squares_MN += weight_MN * weight_MN
    return sums_MN, squares_MN


@triton.jit(do_not_specialize=["num_queries", "num_rows", "first_row"])
def _sums(
    q, k, lse, sums, squares, scale_log2, num_queries, num_rows, first_row,
    q_stride_h, q_stride_t, k_stride_h, k_stride_t, LOG2E_: tl.constexpr,
    G: tl.constexpr, D: tl.constexpr, SQUARES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program per tile of keys and KV head. `BLOCK_M` divides `BLOCK_N`."""
    first, kv_head = tl.program_id(0) * BLOCK_N, tl.program_id(1).to(tl.int64)
    j, d = first + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    k_at_ND = kv_head * k_stride_h + j[:, None] * k_stride_t + d[None, :]
    k_ND = tl.load(k + k_at_ND, mask=(j < num_rows)[:, None] & (d < D)[None, :], other=0.0)
    before = num_rows - num_queries
    sums_MN = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)  # added up over rows once, at the end
    squares_MN = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    start_row = tl.maximum(first, first_row) // BLOCK_M * BLOCK_M
    below = tl.maximum(start_row, first + BLOCK_N)  # from here on every row sees every column
    for g in range(G):
        head = kv_head * G + g
        q_head, lse_head = q + head * q_stride_h, lse + head * num_queries
        sums_MN, squares_MN = _add_rows(
            sums_MN, squares_MN, q_head, lse_head, k_ND, start_row, tl.minimum(below, num_rows),
            first, first_row, before, num_rows, scale_log2, q_stride_t,
            LOG2E_, D, SQUARES, True, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip
        sums_MN, squares_MN = _add_rows(
            sums_MN, squares_MN, q_head, lse_head, k_ND, below, num_rows,
            first, first_row, before, num_rows, scale_log2, q_stride_t,
            LOG2E_, D, SQUARES, False, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip
    to_N = kv_head * num_rows + j
    tl.store(sums + to_N, tl.sum(sums_MN, axis=0), mask=j < num_rows)
    if SQUARES:
        tl.store(squares + to_N, tl.sum(squares_MN, axis=0), mask=j < num_rows)


def column_sums(
    q_HTD: torch.Tensor,
    k_KSD: torch.Tensor,
    lse_HT: torch.Tensor,
    *,
    scale: float,
    squares: bool = False,
    first_row: int = 0,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`sums_KS`, and `squares_KS` where asked for, over the queries from `first_row` on."""
    check_type(q_HTD, k_KSD)
    num_heads, num_queries, size = q_HTD.shape
    num_kv_heads, num_rows = k_KSD.shape[:2]
    assert k_KSD.shape[2] == size, (q_HTD.shape, k_KSD.shape)
    assert num_rows >= num_queries, "the queries' own rows are the last rows"
    assert num_heads % num_kv_heads == 0, (q_HTD.shape, k_KSD.shape)
    assert lse_HT.shape == (num_heads, num_queries), lse_HT.shape
    assert lse_HT.dtype == torch.float32, lse_HT.dtype
    assert lse_HT.is_contiguous(), "the log-sum-exp must be contiguous"
    assert 0 <= first_row <= num_queries, (first_row, num_queries)
    q_HTD, k_KSD = dense_rows(q_HTD), dense_rows(k_KSD)
    sums_KS = torch.empty(num_kv_heads, num_rows, dtype=torch.float32, device=k_KSD.device)
    squares_KS = torch.empty_like(sums_KS) if squares else None
    block_d = block_of(size)
    block_m, block_n, warps, stages = _tiles(q_HTD.dtype, block_d, squares)
    with on(q_HTD):
        _sums[(triton.cdiv(num_rows, block_n), num_kv_heads)](
            q_HTD, k_KSD, lse_HT, sums_KS, sums_KS if squares_KS is None else squares_KS,
            scale * LOG2E, num_queries, num_rows, num_rows - num_queries + first_row,
            *q_HTD.stride()[:2], *k_KSD.stride()[:2],
            LOG2E_=LOG2E, G=num_heads // num_kv_heads, D=size, SQUARES=squares,
            BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_D=block_d,
            num_warps=warps, num_stages=stages,
        )  # fmt: skip
    return sums_KS, squares_KS


def _tiles(dtype: torch.dtype, block_d: int, squares: bool) -> tuple[int, int, int, int]:
    """Rows and columns of a tile, warps, stages: at most 99 KiB, two programs a multiprocessor."""
    if dtype == torch.float32:
        return (32, 64, 8, 2) if block_d <= 128 else (32, 32, 8, 2)
    return (64, 128, 8 if squares else 4, 3) if block_d <= 128 else (64, 64, 8, 2)
