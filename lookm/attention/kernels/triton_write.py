"""Rows of keys and values into their pages, in one launch.

Contract (reference: `lookm.pages.write_rows`): pages [P, K, N, D] contiguous; page and slot [R]
int64; k and v [R, K, D] of any strides with D dense, rounded to the pages' type, or where pages are
int8 or float8_e4m3fn packed with scales [P, K, N] float32 (`lookm.kv_format.pack`). No two rows
share a place (rows sent to the scratch page may: what it holds is never read for an answer).
"""

import torch
import triton
import triton.language as tl

from lookm.attention.kernels.checks import check_places
from lookm.attention.kernels.triton_launch import block_of, dense_rows, on
from lookm.kv_format import LARGEST
from lookm.pages import Pages

TILE_ELEMENTS = 4096


@triton.jit
def _pack(x_KD, mask_KD, LARGEST: tl.constexpr, ROUNDED: tl.constexpr):
    """Rows as bytes, still float32, and their scales. To int8 by adding and taking away 1.5 x 2^23,
    after which a float32 has no room for a fraction: to nearest, ties to even."""
    x_KD = tl.where(mask_KD, x_KD.to(tl.float32), 0.0)
    top_K = tl.maximum(tl.max(tl.abs(x_KD), axis=1), 1e-30)
    y_KD = x_KD * tl.div_rn(LARGEST + 0.0 * top_K, top_K)[:, None]
    if ROUNDED:
        y_KD = (y_KD + 12582912.0) - 12582912.0
    return y_KD, tl.div_rn(top_K, LARGEST + 0.0 * top_K)


@triton.jit
def _write(
    k, v, k_pages, v_pages, k_scales, v_scales, page, slot,
    k_stride_r, k_stride_h, v_stride_r, v_stride_h, page_stride, head_stride,
    K: tl.constexpr, D: tl.constexpr, N: tl.constexpr, LARGEST: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program per row and `BLOCK_K` heads."""
    r = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    d = tl.arange(0, BLOCK_D)
    mask_KD = (h < K)[:, None] & (d < D)[None, :]
    page_r, slot_r = tl.load(page + r), tl.load(slot + r)
    to_KD = page_r * page_stride + slot_r * D + h[:, None] * head_stride + d[None, :]
    k_KD = tl.load(k + r * k_stride_r + h[:, None] * k_stride_h + d[None, :], mask=mask_KD)
    v_KD = tl.load(v + r * v_stride_r + h[:, None] * v_stride_h + d[None, :], mask=mask_KD)
    if LARGEST > 0:
        to_K = (page_r * K + h) * N + slot_r
        k_KD, k_scale_K = _pack(k_KD, mask_KD, LARGEST, k_pages.dtype.element_ty == tl.int8)
        v_KD, v_scale_K = _pack(v_KD, mask_KD, LARGEST, v_pages.dtype.element_ty == tl.int8)
        tl.store(k_scales + to_K, k_scale_K, mask=h < K)
        tl.store(v_scales + to_K, v_scale_K, mask=h < K)
    tl.store(k_pages + to_KD, k_KD.to(k_pages.dtype.element_ty), mask=mask_KD)
    tl.store(v_pages + to_KD, v_KD.to(v_pages.dtype.element_ty), mask=mask_KD)


def write_rows(
    pages: Pages,
    page_R: torch.Tensor,
    slot_R: torch.Tensor,
    k_RKD: torch.Tensor,
    v_RKD: torch.Tensor,
) -> None:
    """Store R rows, each at its own (page, slot)."""
    num_rows, num_heads, size = k_RKD.shape
    check_places(pages, page_R, slot_R, k_RKD, v_RKD)
    for index_R in (page_R, slot_R):
        assert index_R.device == pages.device == k_RKD.device, "one device for all"
    if num_rows == 0:
        return
    k_RKD, v_RKD = dense_rows(k_RKD), dense_rows(v_RKD)
    k_PKND, v_PKND = pages.k_PKND, pages.v_PKND
    block_d = block_of(size)
    block_k = min(triton.next_power_of_2(num_heads), max(1, TILE_ELEMENTS // block_d))
    with on(k_PKND):
        _write[(num_rows, triton.cdiv(num_heads, block_k))](
            k_RKD, v_RKD, k_PKND, v_PKND,
            pages.k_scale_PKN, pages.v_scale_PKN, page_R, slot_R,
            k_RKD.stride(0), k_RKD.stride(1), v_RKD.stride(0), v_RKD.stride(1),
            k_PKND.stride(0), k_PKND.stride(1),
            K=num_heads, D=size, N=k_PKND.shape[2], LARGEST=LARGEST.get(k_PKND.dtype, 0.0),
            BLOCK_K=block_k, BLOCK_D=block_d, num_warps=4,
        )  # fmt: skip
