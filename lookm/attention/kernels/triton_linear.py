"""A linear layer for the few rows of a decode step, at the speed its weights can be read.

Contract (twin: `torch.nn.functional.linear`): x [R, C], R at most 32, weight [O, C]
contiguous, bias [O] or None, one type of float16, bfloat16 and float32; out [R, O]. Sums are
float32. One program goes along `tile.outputs` rows of the weight, all of C: no two programs add to
one number, and what a row of x gets does not depend on the rows beside it.

The matrix product of the GPU wants 16 rows at least: those that are not there are zeros, which cost
nothing while the weights are what is waited for.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from lookm.attention.kernels.triton_launch import TYPES, on

MAX_ROWS = 32


@dataclass(frozen=True, slots=True)
class Tile:
    """How a program walks: `outputs` x `inputs` weights at a time, `stages` buffers of them."""

    outputs: int
    inputs: int
    stages: int
    warps: int


#: What `lookm.models.skinny` tries. Up to 96 KiB on their way in each multiprocessor.
TILES = (
    Tile(outputs=16, inputs=256, stages=4, warps=4),
    Tile(outputs=32, inputs=256, stages=3, warps=4),
    Tile(outputs=64, inputs=128, stages=4, warps=4),
    Tile(outputs=128, inputs=64, stages=4, warps=4),
)


@triton.jit(do_not_specialize=["num_rows"])
def _linear(
    x, weight, bias, out, num_rows, outputs, inputs, x_stride,
    BIAS: tl.constexpr, WHOLE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program per `BLOCK_O` outputs. `WHOLE`: `BLOCK_C` divides the inputs."""
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    r, c = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_C)
    sum_OR = tl.zeros([BLOCK_O, BLOCK_R], tl.float32)
    for first in range(0, inputs, BLOCK_C):
        mask_OC, mask_RC = (o < outputs)[:, None], (r < num_rows)[:, None]
        if not WHOLE:
            mask_OC &= (first + c < inputs)[None, :]
            mask_RC &= (first + c < inputs)[None, :]
        w_at_OC = o[:, None].to(tl.int64) * inputs + first + c[None, :]
        w_OC = tl.load(weight + w_at_OC, mask=mask_OC, other=0.0)
        x_RC = tl.load(x + r[:, None] * x_stride + first + c[None, :], mask=mask_RC, other=0.0)
        sum_OR = tl.dot(w_OC, tl.trans(x_RC), sum_OR, input_precision="ieee")
    if BIAS:
        sum_OR += tl.load(bias + o, mask=o < outputs, other=0.0).to(tl.float32)[:, None]
    to_OR = r[None, :] * outputs + o[:, None]
    mask_OR = (o < outputs)[:, None] & (r < num_rows)[None, :]
    tl.store(out + to_OR, sum_OR.to(out.dtype.element_ty), mask=mask_OR)


def linear(
    x_RC: torch.Tensor, weight_OC: torch.Tensor, bias_O: torch.Tensor | None, tile: Tile
) -> torch.Tensor:
    """`x weight^T + bias`, `[R, O]`."""
    num_rows, size = x_RC.shape
    outputs = weight_OC.shape[0]
    assert weight_OC.shape == (outputs, size), (x_RC.shape, weight_OC.shape)
    assert 0 < num_rows <= MAX_ROWS, f"{num_rows} rows: the kernel takes 1 to {MAX_ROWS}"
    assert weight_OC.is_contiguous(), "weights must be contiguous"
    assert x_RC.stride(1) == 1, "rows must be dense"
    assert x_RC.dtype == weight_OC.dtype in TYPES, (x_RC.dtype, weight_OC.dtype)
    assert bias_O is None or bias_O.dtype == x_RC.dtype, (x_RC.dtype, bias_O)
    out_RO = torch.empty(num_rows, outputs, dtype=x_RC.dtype, device=x_RC.device)
    with on(x_RC):
        _linear[(triton.cdiv(outputs, tile.outputs),)](
            x_RC, weight_OC, weight_OC if bias_O is None else bias_O, out_RO,
            num_rows, outputs, size, x_RC.stride(0),
            BIAS=bias_O is not None, WHOLE=size % tile.inputs == 0,
            BLOCK_R=max(16, triton.next_power_of_2(num_rows)),
            BLOCK_O=tile.outputs, BLOCK_C=tile.inputs,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return out_RO
