"""What a layer does to its rows between the matrix products, in one launch each.

Contracts (references: transformers' own modules, see `lookm.models.fast.fuse`); rows dense, of one
type:

- `rms_norm`: weight * (x / sqrt(mean(x^2) + epsilon)) over the last dimension, in float32, the
  quotient rounded to the type of x before the product, as Llama does.
- `silu_mul`: [R, 2 I] -> [R, I], silu(first half) * second half, the activation rounded in between.
- `rotate`: the first `heads` heads of [T, heads + more, D] rotated in place by cos and sin [T, D]:
  (a, b) -> (a cos - b sin, b cos + a sin) for the two halves of a head; float32, rounded once.
"""

import torch
import triton
import triton.language as tl

from lookm.attention.kernels.checks import check_rotation
from lookm.attention.kernels.triton_launch import on

MAX_ROW = 1 << 15
TILE_ELEMENTS = 1024


@triton.jit
def _rms_norm(x, weight, out, epsilon, E: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, BLOCK)
    x_E = tl.load(x + row * E + e, mask=e < E, other=0.0)
    wide_E = x_E.to(tl.float32)
    share = tl.rsqrt(tl.sum(wide_E * wide_E, axis=0) / E + epsilon)
    w_E = tl.load(weight + e, mask=e < E, other=0.0)
    tl.store(out + row * E + e, (wide_E * share).to(x_E.dtype) * w_E, mask=e < E)


@triton.jit
def _silu_mul(x, out, I: tl.constexpr, BLOCK: tl.constexpr):  # noqa: E741 intermediate size
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate_I = tl.load(x + row * 2 * I + i, mask=i < I, other=0.0)
    up_I = tl.load(x + row * 2 * I + I + i, mask=i < I, other=0.0)
    wide_I = gate_I.to(tl.float32)
    active_I = (wide_I / (1.0 + tl.exp(-wide_I))).to(gate_I.dtype)
    tl.store(out + row * I + i, active_I * up_I, mask=i < I)


@triton.jit
def _rotate(
    x, cos, sin, x_stride_t,
    H: tl.constexpr, D: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    h, d = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_D)
    half = D // 2
    inside_D = d < half
    cos_a = tl.load(cos + t * D + d, mask=inside_D, other=0.0).to(tl.float32)[None, :]
    cos_b = tl.load(cos + t * D + half + d, mask=inside_D, other=0.0).to(tl.float32)[None, :]
    sin_a = tl.load(sin + t * D + d, mask=inside_D, other=0.0).to(tl.float32)[None, :]
    sin_b = tl.load(sin + t * D + half + d, mask=inside_D, other=0.0).to(tl.float32)[None, :]
    mask_HD = (h < H)[:, None] & inside_D[None, :]
    at_HD = t * x_stride_t + h[:, None] * D + d[None, :]
    a_HD = tl.load(x + at_HD, mask=mask_HD, other=0.0).to(tl.float32)
    b_HD = tl.load(x + at_HD + half, mask=mask_HD, other=0.0).to(tl.float32)
    kind = x.dtype.element_ty
    tl.store(x + at_HD, (a_HD * cos_a - b_HD * sin_a).to(kind), mask=mask_HD)
    tl.store(x + at_HD + half, (b_HD * cos_b + a_HD * sin_b).to(kind), mask=mask_HD)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """`[..., E] -> [..., E]`."""
    size = x.shape[-1]
    assert weight.shape == (size,), (weight.shape, x.shape)
    assert weight.dtype == x.dtype, (weight.dtype, x.dtype)
    assert size <= MAX_ROW, f"rows of {size}: the kernel takes up to {MAX_ROW}"
    x = x.contiguous()
    out = torch.empty_like(x)
    block = int(triton.next_power_of_2(size))
    with on(x):
        _rms_norm[(x.numel() // size,)](
            x, weight, out, epsilon, E=size, BLOCK=block, num_warps=4 if block <= 4096 else 8
        )
    return out


def silu_mul(x: torch.Tensor) -> torch.Tensor:
    """`[..., 2 I] -> [..., I]`."""
    size = x.shape[-1] // 2
    assert x.shape[-1] == 2 * size, x.shape
    x = x.contiguous()
    out = torch.empty((*x.shape[:-1], size), dtype=x.dtype, device=x.device)
    block = min(TILE_ELEMENTS, int(triton.next_power_of_2(size)))
    with on(x):
        _silu_mul[(out.numel() // size, triton.cdiv(size, block))](x, out, I=size, BLOCK=block)
    return out


def rotate(x_TC: torch.Tensor, cos_TD: torch.Tensor, sin_TD: torch.Tensor, heads: int) -> None:
    """Rotate the first `heads` heads of every row of `x_TC`, in place."""
    num_tokens, size = cos_TD.shape
    check_rotation(x_TC, cos_TD, sin_TD, heads)
    block_d = int(triton.next_power_of_2(size // 2))
    block_h = min(int(triton.next_power_of_2(heads)), max(1, TILE_ELEMENTS // block_d))
    with on(x_TC):
        _rotate[(num_tokens, triton.cdiv(heads, block_h))](
            x_TC, cos_TD.contiguous(), sin_TD.contiguous(), x_TC.stride(0),
            H=heads, D=size, BLOCK_H=block_h, BLOCK_D=block_d,
        )  # fmt: skip
