"""What a layer does to its rows on a CPU in bfloat16, a product of few included: checked here.

The C++ is in `rows.hpp` and `linear.hpp`, with the contracts; `triton_rows` and `triton_linear`
have the same functions for CUDA.
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


def linear(
    x_RI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None
) -> torch.Tensor:
    """`x weight^T + bias`, `[R, O]`, for few rows: sums in float32, rounded once."""
    tensors = (x_RI, weight_OI) if bias_O is None else (x_RI, weight_OI, bias_O)
    assert all(each.dtype == torch.bfloat16 for each in tensors), [each.dtype for each in tensors]
    assert x_RI.shape[1] == weight_OI.shape[1], (x_RI.shape, weight_OI.shape)
    assert bias_O is None or bias_O.shape == weight_OI.shape[:1], (bias_O.shape, weight_OI.shape)
    bias = None if bias_O is None else bias_O.contiguous()
    out_RO: torch.Tensor = _kernels().linear(x_RI.contiguous(), weight_OI.contiguous(), bias)
    return out_RO
