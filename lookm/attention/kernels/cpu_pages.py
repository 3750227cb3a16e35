"""Rows into their pages and out of them, on a CPU: checked here, copied in `page_rows.hpp`.

The references are `lookm.pages.write_rows`, which `triton_write` does on CUDA, and `read_rows`.
"""

import functools

import torch

from lookm.attention.kernels.build import load_kernel
from lookm.attention.kernels.checks import check_places
from lookm.pages import Pages

_kernels = functools.cache(load_kernel)


def write_rows(
    pages: Pages,
    page_R: torch.Tensor,
    slot_R: torch.Tensor,
    k_RKD: torch.Tensor,
    v_RKD: torch.Tensor,
) -> None:
    """Store R rows, each at its own (page, slot). Raises `IndexError` for a place outside."""
    check_places(pages, page_R, slot_R, k_RKD, v_RKD)
    for rows_RKD in (k_RKD, v_RKD):
        assert rows_RKD.dtype == pages.k_PKND.dtype, (rows_RKD.dtype, pages.k_PKND.dtype)
        assert rows_RKD.stride(2) == 1, "rows must be dense"
    _kernels().write_rows(pages.k_PKND, pages.v_PKND, page_R, slot_R, k_RKD, v_RKD)


def read_rows(pages: Pages, page_M: torch.Tensor, k_KSD: torch.Tensor, v_KSD: torch.Tensor) -> None:
    """Copy the first S rows of these pages. Raises `IndexError` for a page that is not there."""
    _, num_heads, page_tokens, size = pages.k_PKND.shape
    pages.check(num_heads, size)
    assert page_M.dtype == torch.int64, page_M.dtype
    assert page_M.is_contiguous(), "index tensors must be contiguous"
    for rows_KSD in (k_KSD, v_KSD):
        assert rows_KSD.dtype == pages.k_PKND.dtype, (rows_KSD.dtype, pages.k_PKND.dtype)
        assert rows_KSD.shape[::2] == (num_heads, size), (rows_KSD.shape, pages.layout)
        assert rows_KSD.shape[1] <= len(page_M) * page_tokens, "more rows than the pages have"
        assert rows_KSD.stride()[1:] == (size, 1), "a head's rows must be dense"
    _kernels().read_rows(pages.k_PKND, pages.v_PKND, page_M, k_KSD, v_KSD)
