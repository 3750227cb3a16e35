"""The C++ decode kernel as an `Attention`: checked and called here, built by `build`.

The twin it must equal is `reference.ReferenceAttention.decode`. Knows shapes, strides and types;
whether the kernel is used at all is `select.choose`'s decision.
"""

from typing import Any

import torch

from lookm.attention.api import Statistics
from lookm.attention.reference import ReferenceAttention
from lookm.types import Needs

_DTYPES = (torch.float32, torch.bfloat16)


class CpuAttention:
    """`lookm.attention.Attention` with decode in C++ and everything else in torch."""

    name = "cpu"

    def __init__(self, extension: Any) -> None:
        self._extension = extension
        self._reference = ReferenceAttention()

    def prefill(
        self,
        q_HTD: torch.Tensor,
        k_KTD: torch.Tensor,
        v_KTD: torch.Tensor,
        *,
        scale: float,
        needs: Needs,
    ) -> tuple[torch.Tensor, Statistics]:
        """As the reference. See `Attention.prefill`."""
        return self._reference.prefill(q_HTD, k_KTD, v_KTD, scale=scale, needs=needs)

    def extend(
        self, q_HTD: torch.Tensor, k_KSD: torch.Tensor, v_KSD: torch.Tensor, *, scale: float
    ) -> torch.Tensor:
        """As the reference. See `Attention.extend`."""
        return self._reference.extend(q_HTD, k_KSD, v_KSD, scale=scale)

    def decode(
        self,
        q_BHD: torch.Tensor,
        k_pages_PKND: torch.Tensor,
        v_pages_PKND: torch.Tensor,
        table_BM: torch.Tensor,
        lengths_B: torch.Tensor,
        *,
        scale: float,
    ) -> torch.Tensor:
        """Each page read once, in place, by all query heads of its KV head's group."""
        _check(q_BHD, k_pages_PKND, v_pages_PKND, table_BM, lengths_B)
        out_BHD: torch.Tensor = self._extension.paged_decode(
            q_BHD.contiguous(), k_pages_PKND, v_pages_PKND, table_BM, lengths_B, scale
        )
        return out_BHD


def _check(
    q_BHD: torch.Tensor,
    k_PKND: torch.Tensor,
    v_PKND: torch.Tensor,
    table_BM: torch.Tensor,
    lengths_B: torch.Tensor,
) -> None:
    """The kernel trusts what is asserted here; it never reads outside a page it was given."""
    batch, heads, size = q_BHD.shape
    assert q_BHD.dtype in _DTYPES, q_BHD.dtype
    assert k_PKND.dtype == v_PKND.dtype == q_BHD.dtype, (k_PKND.dtype, v_PKND.dtype)
    assert k_PKND.is_contiguous()
    assert v_PKND.is_contiguous()
    assert k_PKND.shape == v_PKND.shape, (k_PKND.shape, v_PKND.shape)
    assert k_PKND.shape[3] == size, (k_PKND.shape, size)
    assert heads % k_PKND.shape[1] == 0, (heads, k_PKND.shape)
    assert table_BM.dtype == torch.int32, table_BM.dtype
    assert table_BM.is_contiguous()
    assert table_BM.shape[0] == batch == lengths_B.shape[0]
    assert lengths_B.dtype == torch.int64, lengths_B.dtype
