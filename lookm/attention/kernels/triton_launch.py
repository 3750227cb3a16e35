"""What every Triton launcher does the same way: block sizes, types, devices.

Kernels and launchers share a file each (`triton_decode`, `triton_write`, `triton_flash`,
`triton_sums`, `triton_merge`, `triton_rows`); `triton` is imported there and nowhere else. Sizes
that change with every prompt are in `do_not_specialize`: a new one never waits for a compiler.
"""

import contextlib
import math

import torch
import triton

LOG2E = math.log2(math.e)
TYPES = (torch.float16, torch.bfloat16, torch.float32)


def block_of(size: int) -> int:
    """The power of two a matrix product needs for `size`: at least 16; what is over is masked."""
    return max(16, int(triton.next_power_of_2(size)))


def check_type(*tensors: torch.Tensor) -> None:
    """All of one type and device that the kernels take, heads of at most 256."""
    first = tensors[0]
    for tensor in tensors:
        assert tensor.dtype == first.dtype, (first.dtype, tensor.dtype)
        assert tensor.device == first.device, (first.device, tensor.device)
        assert tensor.shape[-1] <= 256, f"heads of {tensor.shape[-1]}: the kernels take up to 256"
    assert first.dtype in TYPES, f"{first.dtype}: the kernels take float16, bfloat16 and float32"


def dense_rows(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, copied only where the numbers of a row are not neighbours."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def on(tensor: torch.Tensor) -> contextlib.AbstractContextManager[None]:
    """Launch on the tensor's device; without a device (Triton's interpreter) nothing to do."""
    if tensor.is_cuda:
        return torch.cuda.device(tensor.device)
    return contextlib.nullcontext()
