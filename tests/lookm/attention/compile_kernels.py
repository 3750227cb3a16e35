"""Compiles every Triton kernel for a GPU that is not there; prints a line for each.

    python -m tests.lookm.attention.compile_kernels 90       # compute capability 9.0: H100, H200

A process of its own: the rest of the suite runs kernels in Triton's interpreter, which must be
chosen before Triton is imported. Launches become compilations, so the launchers are the real ones.
"""

import functools
import inspect
import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from lookm.attention.kernels.triton_decode import decode
from lookm.attention.kernels.triton_flash import flash
from lookm.attention.kernels.triton_linear import TILES, linear
from lookm.attention.kernels.triton_merge import combine, nearest
from lookm.attention.kernels.triton_rows import rms_norm, rotate, silu_mul
from lookm.attention.kernels.triton_sums import column_sums
from lookm.attention.kernels.triton_write import write_rows
from tests.lookm.attention.triton_cases import noise, paged, prompt

#: Shared memory of one program, by compute capability: A100, 3090, 4090, H200, B200, 5090.
SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
NAMES = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.int8: "*i8",
    torch.float8_e4m3fn: "*fp8e4nv",
}


def compile_instead(
    capability: Any, self: Any, *args: Any, grid: Any, warmup: Any, **kwargs: Any
) -> None:
    """`JITFunction.run`, without a device."""
    names = set(self.signature.parameters)
    bound = self.signature.bind(*args, **{k: v for k, v in kwargs.items() if k in names})
    signature, constants = {}, {}
    for index, (name, value) in enumerate(bound.arguments.items()):
        if self.params[index].is_constexpr:
            signature[name], constants[(index,)] = "constexpr", value
        elif value is None:
            signature[name], constants[(index,)] = "constexpr", None
        elif isinstance(value, torch.Tensor):
            signature[name] = NAMES[value.dtype]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
    options = {k: v for k, v in kwargs.items() if k not in names}
    source = ASTSource(self, signature, constexprs=constants)
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options=options)
    shared = compiled.metadata.shared
    assert shared <= SHARED_KIB[capability] * 1024, (self.__name__, options, shared)
    print(self.__name__, shared, len(compiled.asm["cubin"]))


def compile_all(dtype: Any, size: Any, group: Any, stored: Any) -> None:
    """Every launcher once at one type, head size and group; pages as each of `stored`."""
    heads, kv_heads = 2 * group, 2
    q, k, v = prompt(heads, kv_heads, 70, size, dtype=dtype)
    _, lse = flash(q, k, v, scale=0.1)
    column_sums(q, k, lse, scale=0.1, squares=True)
    column_sums(q, k, lse, scale=0.1, first_row=5)
    place = torch.arange(5)
    for name in stored:
        case = paged(heads, kv_heads, size, [40, 3], dtype=dtype, stored=name)
        decode(*case, scale=0.1)
        write_rows(case[1], place, place, k.transpose(0, 1)[:5], v.transpose(0, 1)[:5])
    rows = noise(2, 33, size, dtype=dtype)
    target, weight = torch.zeros(2, 33, dtype=torch.int64), torch.ones(2, 33)
    nearest(rows, rows)
    combine([(rows, rows)], target, weight, weight)
    x, weight = noise(32, 512, dtype=dtype), noise(192, 512, dtype=dtype)
    norm = None if dtype == torch.float16 else (x[0].clone(), 1e-5)
    for tile in TILES:
        linear(x, weight, None, tile, residual_RO=noise(32, 192, dtype=dtype))
        linear(x, weight, None, tile, norm=norm, gated=True)
    rms_norm(rows, rows[0, 0].clone(), 1e-5)
    silu_mul(rows)
    rotate(rows[0].repeat(1, 2), rows[0], rows[0], 2)


def main() -> int:
    assert "warmup" in inspect.signature(JITFunction.run).parameters, "another Triton"
    capability = int(sys.argv[1])
    stored = ("auto", "int8", "fp8") if capability >= 89 else ("auto", "int8")
    JITFunction.run = functools.partialmethod(functools.partial(compile_instead, capability))
    for dtype, size, group in (
        (torch.float16, 128, 1),
        (torch.bfloat16, 128, 4),
        (torch.bfloat16, 80, 7),
        (torch.float32, 64, 2),
        (torch.float32, 256, 1),
    ):
        compile_all(dtype, size, group, stored)
    return 0


if __name__ == "__main__":
    sys.exit(main())
