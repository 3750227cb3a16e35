"""What the launchers of the C++ and the Triton kernels assert alike: the contracts they share."""

from collections.abc import Sequence

import torch

from lookm.pages import Pages


def check_rotation(
    x_TC: torch.Tensor, cos_TD: torch.Tensor, sin_TD: torch.Tensor, heads: int
) -> None:
    """`heads` heads of every row of `x_TC`, and an angle for each number of half a head."""
    num_tokens, size = cos_TD.shape
    assert cos_TD.shape == sin_TD.shape, (cos_TD.shape, sin_TD.shape)
    assert size % 2 == 0, "a head has two halves"
    assert x_TC.shape[0] == num_tokens, (x_TC.shape, cos_TD.shape)
    assert x_TC.stride(1) == 1, "rows must be dense"
    assert x_TC.shape[1] >= heads * size, (x_TC.shape, heads, size)


def check_places(
    pages: Pages,
    page_R: torch.Tensor,
    slot_R: torch.Tensor,
    k_RKD: torch.Tensor,
    v_RKD: torch.Tensor,
) -> None:
    """Pages, and rows of their shape with a page and a slot each."""
    _, num_heads, _, size = pages.k_PKND.shape
    pages.check(num_heads, size)
    for rows_RKD in (k_RKD, v_RKD):
        assert rows_RKD.shape == (len(page_R), num_heads, size), (
            rows_RKD.shape,
            pages.k_PKND.shape,
        )
    for index_R in (page_R, slot_R):
        assert index_R.shape == page_R.shape, index_R.shape
        assert index_R.dtype == torch.int64, index_R.dtype
        assert index_R.is_contiguous(), "index tensors must be contiguous"


def check_merge(
    rows: Sequence[tuple[torch.Tensor, torch.Tensor]],
    target_KE: torch.Tensor,
    weight_KE: torch.Tensor,
    centre_KS: torch.Tensor,
) -> None:
    """Pairs of kept and evicted rows, the way of each evicted one, float32 weights."""
    assert target_KE.dtype == torch.int64, target_KE.dtype
    assert weight_KE.dtype == centre_KS.dtype == torch.float32, weight_KE.dtype
    for kept_KSD, evicted_KED in rows:
        shapes = (kept_KSD.shape, evicted_KED.shape)
        assert kept_KSD.shape[::2] == evicted_KED.shape[::2], shapes
        assert evicted_KED.dtype == kept_KSD.dtype, evicted_KED.dtype
        assert target_KE.shape == weight_KE.shape == evicted_KED.shape[:2], target_KE.shape
        assert centre_KS.shape == kept_KSD.shape[:2], centre_KS.shape
