"""Rows of keys and values into their pages, on a CPU: checked here, copied in `write_rows.hpp`.

The twin is `cache.pool.write_rows`; `triton_write` does the same on CUDA.
"""

import functools

import torch

from lookm.attention.kernels.build import load_kernel

_kernels = functools.cache(load_kernel)


def write_rows(
    k_PKND: torch.Tensor,
    v_PKND: torch.Tensor,
    page_R: torch.Tensor,
    slot_R: torch.Tensor,
    k_RKD: torch.Tensor,
    v_RKD: torch.Tensor,
) -> None:
    """Store R rows, each at its own (page, slot). Raises `IndexError` for a place outside."""
    num_heads, size = k_PKND.shape[1], k_PKND.shape[3]
    assert k_PKND.is_contiguous(), "pages must be contiguous"
    assert v_PKND.is_contiguous(), "pages must be contiguous"
    assert v_PKND.shape == k_PKND.shape, (k_PKND.shape, v_PKND.shape)
    for rows_RKD in (k_RKD, v_RKD):
        assert rows_RKD.shape == (len(page_R), num_heads, size), (rows_RKD.shape, k_PKND.shape)
        assert rows_RKD.dtype == k_PKND.dtype == v_PKND.dtype, (rows_RKD.dtype, k_PKND.dtype)
        assert rows_RKD.stride(2) == 1, "rows must be dense"
    for index_R in (page_R, slot_R):
        assert index_R.shape == page_R.shape, index_R.shape
        assert index_R.dtype == torch.int64, index_R.dtype
        assert index_R.is_contiguous(), "index tensors must be contiguous"
    _kernels().write_rows(k_PKND, v_PKND, page_R, slot_R, k_RKD, v_RKD)
