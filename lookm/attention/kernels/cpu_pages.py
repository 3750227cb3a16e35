"""Rows into their pages and out of them, on a CPU: checked here, copied in `page_rows.hpp`.

The references are `lookm.pages.write_rows`, which `triton_write` does on CUDA, and `read_rows`.
"""

import functools

import torch

from lookm.attention.kernels.build import load_kernel
from lookm.attention.kernels.checks import check_places
from lookm.pages import Pages

TYPES = (torch.float32, torch.bfloat16)

_kernels = functools.cache(load_kernel)


def tensors_of(pages: Pages) -> tuple[torch.Tensor | None, ...]:
    """Pages as the kernels take them: numbers, then scales or None."""
    return pages.k_PKND, pages.v_PKND, pages.k_scale_PKN, pages.v_scale_PKN


def check_rows(pages: Pages, k: torch.Tensor, v: torch.Tensor) -> None:
    """Rows of the pages' type; of one the kernels know where the pages are bytes, int8."""
    stored = pages.k_PKND.dtype
    assert k.dtype == v.dtype, (k.dtype, v.dtype)
    if pages.scaled:
        assert stored == torch.int8, f"{stored}: the kernels take int8"
        assert k.dtype in TYPES, f"{k.dtype}: the kernels take {TYPES}"
    else:
        assert k.dtype == stored, (k.dtype, stored)


def write_rows(
    pages: Pages,
    page_R: torch.Tensor,
    slot_R: torch.Tensor,
    k_RKD: torch.Tensor,
    v_RKD: torch.Tensor,
) -> None:
    """Store R rows, each at its own (page, slot). Raises `IndexError` for a place outside."""
    check_places(pages, page_R, slot_R, k_RKD, v_RKD)
    check_rows(pages, k_RKD, v_RKD)
    for rows_RKD in (k_RKD, v_RKD):
        assert rows_RKD.stride(2) == 1, "rows must be dense"
    _kernels().write_rows(*tensors_of(pages), page_R, slot_R, k_RKD, v_RKD)


def read_rows(pages: Pages, page_M: torch.Tensor, k_KSD: torch.Tensor, v_KSD: torch.Tensor) -> None:
    """Copy the first S rows of these pages. Raises `IndexError` for a page that is not there."""
    _, num_heads, page_tokens, size = pages.k_PKND.shape
    pages.check(num_heads, size)
    assert page_M.dtype == torch.int64, page_M.dtype
    assert page_M.is_contiguous(), "index tensors must be contiguous"
    check_rows(pages, k_KSD, v_KSD)
    for rows_KSD in (k_KSD, v_KSD):
        assert rows_KSD.shape[::2] == (num_heads, size), (rows_KSD.shape, pages.k_PKND.shape)
        assert rows_KSD.shape[1] <= len(page_M) * page_tokens, "more rows than the pages have"
        assert rows_KSD.stride()[1:] == (size, 1), "a head's rows must be dense"
    _kernels().read_rows(*tensors_of(pages), page_M, k_KSD, v_KSD)
