"""What a layer does to its rows between the matrix products, on a CPU in bfloat16: checked here.

The C++ is in `rows.hpp`, with the contracts; `triton_rows` has the same functions for CUDA.
"""

import functools

import torch

from lookm.attention.kernels.build import load_kernel
from lookm.attention.kernels.checks import check_rotation

_kernels = functools.cache(load_kernel)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """`weight * (x / sqrt(mean(x^2) + epsilon))` over the last dimension, `[..., E]`."""
    assert weight.shape == x.shape[-1:], (weight.shape, x.shape)
    assert x.dtype == weight.dtype == torch.bfloat16, (x.dtype, weight.dtype)
    out: torch.Tensor = _kernels().rms_norm(x.contiguous(), weight.contiguous(), epsilon)
    return out


def rotate(x_TC: torch.Tensor, cos_TD: torch.Tensor, sin_TD: torch.Tensor, heads: int) -> None:
    """Rotate the first `heads` heads of every row of `x_TC`, in place."""
    check_rotation(x_TC, cos_TD, sin_TD, heads)
    assert x_TC.dtype == cos_TD.dtype == sin_TD.dtype == torch.bfloat16, (x_TC.dtype, cos_TD.dtype)
    _kernels().rotate(x_TC, cos_TD.contiguous(), sin_TD.contiguous(), heads)
