"""Rows of keys and values into their pages, on a CPU: checked here, copied in `write_rows.hpp`.

The reference is `lookm.pages.write_rows`; `triton_write` does the same on CUDA.
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
