"""A matrix product for the few rows of a decode step, with what stands around it, in one launch.

Contract (reference: `lookm.models.fast.matmul_choice.Product` without a tile): x [R, C], R at most
32, weight [O, C] contiguous, bias [O] or None, one type of float16, bfloat16 and float32; out [R,
O]. Sums are float32. Then, where asked for:

- `norm`: x is RMS-normalised first, weight [C]: `weight * x / sqrt(mean(x^2) + epsilon)`. The
  quotient is applied to the sums, so products of x and weight must fit the type: not float16.
- `gated`: the first half of the outputs, through silu, times the second: out [R, O / 2].
- `residual` [R, O] is added last.

One program goes along `tile.outputs` rows of the weight, all of C: no two programs add to one
number, and what a row of x gets does not depend on the rows beside it. The matrix product of the
GPU wants 16 rows at least: those that are not there are zeros, which cost nothing while the weights
are what is waited for.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from lookm.attention.kernels.triton_launch import TYPES, on

MAX_ROWS = 32


@dataclass(frozen=True, slots=True)
class Tile:
    """How a program walks: `outputs` x `inputs` weights at a time, `stages` buffers of them.

    Of float32 half as many inputs; where gated, half as many outputs, twice.
    """

    outputs: int
    inputs: int
    stages: int
    warps: int


#: What `lookm.models.fast.matmul_choice` tries. Up to 96 KiB on their way in each multiprocessor.
TILES = (
    Tile(outputs=16, inputs=256, stages=4, warps=4),
    Tile(outputs=32, inputs=256, stages=3, warps=4),
    Tile(outputs=64, inputs=128, stages=4, warps=4),
    Tile(outputs=128, inputs=64, stages=4, warps=4),
)


@triton.jit(do_not_specialize=["num_rows"])
def _linear(
    x, weight, bias, norm, residual, out, num_rows, outputs, inputs, x_stride, epsilon,
    BIAS: tl.constexpr, NORM: tl.constexpr, GATED: tl.constexpr, RESIDUAL: tl.constexpr,
    WHOLE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program per `BLOCK_O` outputs. `WHOLE`: `BLOCK_C` divides the inputs."""
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    r, c = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_C)
    kind = out.dtype.element_ty
    sum_OR = tl.zeros([BLOCK_O, BLOCK_R], tl.float32)
    up_OR = tl.zeros([BLOCK_O, BLOCK_R], tl.float32)
    squares_RC = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for first in range(0, inputs, BLOCK_C):
        mask_OC, mask_RC = (o < outputs)[:, None], (r < num_rows)[:, None]
        if not WHOLE:
            mask_OC &= (first + c < inputs)[None, :]
            mask_RC &= (first + c < inputs)[None, :]
        x_RC = tl.load(x + r[:, None] * x_stride + first + c[None, :], mask=mask_RC, other=0.0)
        if NORM:
            wide_RC = x_RC.to(tl.float32)
            squares_RC += wide_RC * wide_RC
            norm_C = tl.load(norm + first + c, mask=first + c < inputs, other=0.0)
            x_RC = (wide_RC * norm_C.to(tl.float32)[None, :]).to(kind)
        w_at_OC = o[:, None].to(tl.int64) * inputs + first + c[None, :]
        w_OC = tl.load(weight + w_at_OC, mask=mask_OC, other=0.0)
        sum_OR = tl.dot(w_OC, tl.trans(x_RC), sum_OR, input_precision="ieee")
        if GATED:
            half = outputs.to(tl.int64) * inputs
            up_OC = tl.load(weight + half + w_at_OC, mask=mask_OC, other=0.0)
            up_OR = tl.dot(up_OC, tl.trans(x_RC), up_OR, input_precision="ieee")
    if NORM:
        share_R = tl.rsqrt(tl.sum(squares_RC, axis=1) / inputs + epsilon)
        sum_OR *= share_R[None, :]
        up_OR *= share_R[None, :]
    if BIAS:
        sum_OR += tl.load(bias + o, mask=o < outputs, other=0.0).to(tl.float32)[:, None]
    if GATED:
        if BIAS:
            bias_O = tl.load(bias + outputs + o, mask=o < outputs, other=0.0)
            up_OR += bias_O.to(tl.float32)[:, None]
        gate_OR = sum_OR.to(kind).to(tl.float32)
        active_OR = (gate_OR / (1.0 + tl.exp(-gate_OR))).to(kind)
        sum_OR = active_OR.to(tl.float32) * up_OR.to(kind).to(tl.float32)
    to_OR = r[None, :] * outputs + o[:, None]
    mask_OR = (o < outputs)[:, None] & (r < num_rows)[None, :]
    if RESIDUAL:
        before_OR = tl.load(residual + to_OR, mask=mask_OR, other=0.0)
        sum_OR = before_OR.to(tl.float32) + sum_OR.to(kind).to(tl.float32)
    tl.store(out + to_OR, sum_OR.to(kind), mask=mask_OR)


def linear(
    x_RC: torch.Tensor,
    weight_OC: torch.Tensor,
    bias_O: torch.Tensor | None,
    tile: Tile,
    *,
    norm: tuple[torch.Tensor, float] | None = None,
    gated: bool = False,
    residual_RO: torch.Tensor | None = None,
) -> torch.Tensor:
    """`residual + gate(norm(x) weight^T + bias)`; `norm` is its weight `[C]` and epsilon."""
    num_rows, size = x_RC.shape
    outputs = weight_OC.shape[0] // 2 if gated else weight_OC.shape[0]
    assert weight_OC.shape[1] == size, (x_RC.shape, weight_OC.shape)
    assert 0 < num_rows <= MAX_ROWS, f"{num_rows} rows: the kernel takes 1 to {MAX_ROWS}"
    assert weight_OC.is_contiguous(), "weights must be contiguous"
    assert x_RC.stride(1) == 1, "rows must be dense"
    assert x_RC.dtype in TYPES, x_RC.dtype
    assert norm is None or x_RC.dtype != torch.float16, "float16 is too narrow for a norm inside"
    shapes = {(size,): norm and norm[0], (weight_OC.shape[0],): bias_O}
    for shape, tensor in ((weight_OC.shape, weight_OC), *shapes.items()):
        assert tensor is None or tensor.shape == shape, (shape, tensor.shape)
        assert tensor is None or tensor.dtype == x_RC.dtype, (tensor.dtype, x_RC.dtype)
        assert tensor is None or tensor.is_contiguous(), "weights must be contiguous"
    out_RO = torch.empty(num_rows, outputs, dtype=x_RC.dtype, device=x_RC.device)
    if residual_RO is not None:
        assert residual_RO.shape == out_RO.shape, (residual_RO.shape, out_RO.shape)
        assert residual_RO.dtype == x_RC.dtype, residual_RO.dtype
        assert residual_RO.is_contiguous(), "the residual must be contiguous"
    norm_C, epsilon = norm or (weight_OC, 0.0)
    block_o = max(16, tile.outputs // 2) if gated else tile.outputs
    block_c = tile.inputs * 2 // x_RC.element_size()
    with on(x_RC):
        _linear[(triton.cdiv(outputs, block_o),)](
            x_RC, weight_OC, weight_OC if bias_O is None else bias_O, norm_C,
            x_RC if residual_RO is None else residual_RO, out_RO,
            num_rows, outputs, size, x_RC.stride(0), epsilon,
            BIAS=bias_O is not None, NORM=norm is not None, GATED=gated,
            RESIDUAL=residual_RO is not None, WHOLE=size % block_c == 0,
            BLOCK_R=max(16, triton.next_power_of_2(num_rows)),
            BLOCK_O=block_o, BLOCK_C=block_c,
            num_warps=tile.warps, num_stages=max(2, tile.stages - gated),
        )  # fmt: skip
    return out_RO
