"""Random layers that look like a multimodal prompt, for the tests of this folder."""

from typing import Any, NamedTuple

import torch


class Layer(NamedTuple):
    q_HTD: torch.Tensor
    k_KTD: torch.Tensor
    v_KTD: torch.Tensor
    is_image_T: torch.Tensor


def layer(
    num_tokens: int = 90,
    heads: int = 4,
    kv_heads: int = 2,
    head_size: int = 16,
    seed: int = 0,
    images: Any = ((10, 70),),
) -> Any:
    """`images` are half-open ranges of image tokens. Few keys attract most of the attention."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: Any) -> Any:
        return torch.randn(*shape, generator=generator)

    q_HTD = normal(heads, num_tokens, head_size) + 0.3
    k_KTD = normal(kv_heads, num_tokens, head_size) + 0.6 * normal(kv_heads, num_tokens, 1)
    is_image_T = torch.zeros(num_tokens, dtype=torch.bool)
    for start, end in images:
        is_image_T[start:end] = True
    return Layer(q_HTD, k_KTD, normal(kv_heads, num_tokens, head_size), is_image_T)
