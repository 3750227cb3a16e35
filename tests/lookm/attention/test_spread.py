"""How widely attention is spread: by hand, and against whole matrices."""

import math
from typing import Any

import pytest
import torch

from lookm.attention import spread
from lookm.types import Needs

BOTH = Needs(window=9, density=True, entropy=True)


def oracle(q: Any, k: Any, scale: Any, is_image: Any, mask: Any, window: Any) -> Any:
    """Density and entropy per KV head, one row and head at a time, float64."""
    num_heads, num_tokens, _ = k.shape
    group = q.shape[0] // num_heads
    densities, entropies = [], []
    for head in range(num_heads):
        dense = seen = 0
        rows = {False: [], True: []}
        for g in range(group):
            for i in range(num_tokens):
                visible = [j for j in range(num_tokens) if mask[i, j]]
                logits = torch.stack(
                    [q[head * group + g, i].double() @ k[head, j].double() for j in visible]
                )
                weights = dict(zip(visible, (logits * scale).softmax(0).tolist(), strict=True))
                if i >= num_tokens - window:
                    seen += len(visible)
                    dense += sum(w >= 0.01 * max(weights.values()) for w in weights.values())
                crossing = [w for j, w in weights.items() if is_image[j] != is_image[i]]
                if crossing:
                    rows[bool(is_image[i])].append(-sum(w * math.log(w) for w in crossing))
        densities.append(dense / seen)
        entropies.append(sum(sum(found) / max(1, len(found)) for found in rows.values()))
    return torch.tensor(densities), torch.tensor(entropies)


def case(num_tokens: int = 80, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    q = 3 * torch.randn(4, num_tokens, 8, generator=generator)
    k = torch.randn(2, num_tokens, 8, generator=generator)
    is_image = torch.zeros(num_tokens, dtype=torch.bool)
    is_image[5:30] = is_image[40:60] = True
    return q, k, is_image


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_numbers_equal_whole_matrices(masked: Any, dtype: Any) -> None:
    q, k, is_image = case()
    causal = torch.ones(80, 80).tril().bool()
    mask = causal.clone()
    if masked:
        mask[5:30, 5:30] = True
    density_K, entropy_K = oracle(q, k, 0.4, is_image, mask, 9)
    got = spread.measure(
        q.to(dtype),
        k.to(dtype),
        scale=0.4,
        is_image_T=is_image,
        needs=BOTH,
        mask_TT=mask if masked else None,
    )
    assert got.density_K.dtype == got.entropy_K.dtype == dtype
    torch.testing.assert_close(got.density_K.double(), density_K.double(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got.entropy_K.double(), entropy_K.double(), rtol=1e-4, atol=1e-4)


def test_even_attention_is_dense_and_has_the_entropy_of_its_parts() -> None:
    """Two image tokens, then two text tokens; all weights of a row are equal."""
    zeros = torch.zeros(1, 4, 2)
    is_image = torch.tensor([True, True, False, False])
    got = spread.measure(
        zeros,
        zeros,
        scale=1.0,
        is_image_T=is_image,
        needs=Needs(window=4, density=True, entropy=True),
    )
    assert got.density_K.tolist() == [1.0]
    text_to_image = (2 / 3 * math.log(3) + 2 / 4 * math.log(4)) / 2
    assert got.entropy_K.item() == pytest.approx(text_to_image)  # no image token sees text


def test_attention_on_one_key_is_sparse_and_has_no_entropy() -> None:
    q = torch.full((1, 4, 1), 50.0)
    k = torch.tensor([[[1.0], [0.0], [0.0], [0.0]]])
    is_image = torch.tensor([True, False, False, False])
    got = spread.measure(
        q, k, scale=1.0, is_image_T=is_image, needs=Needs(window=2, density=True, entropy=True)
    )
    assert got.density_K.item() == pytest.approx(2 / 7)  # rows of 3 and 4 keys, one dense in each
    assert got.entropy_K.item() == pytest.approx(0, abs=1e-6)


def test_what_is_not_asked_for_is_not_computed() -> None:
    q, k, is_image = case()
    nothing = spread.measure(q, k, scale=1.0, is_image_T=is_image, needs=Needs(sums=True))
    assert nothing.density_K is nothing.entropy_K is None
    one = spread.measure(q, k, scale=0.4, is_image_T=is_image, needs=Needs(window=9, density=True))
    both = spread.measure(q, k, scale=0.4, is_image_T=is_image, needs=BOTH)
    assert one.entropy_K is None
    torch.testing.assert_close(one.density_K, both.density_K)
