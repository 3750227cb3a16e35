"""A model in bfloat16 on a CPU that cannot multiply it (AVX2): its products in float32.

torch multiplies bfloat16 there at a seventh of the speed of float32. The weights stay in bfloat16;
for few rows our own kernel reads them once, for many they are widened for the time of a product:
a twentieth of what it takes. The result is bfloat16's: exact products, sums in float32, rounded
once. Knows modules; knows nothing about families, pages or policies.
"""

import copy
import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lookm.attention import ModelKernels
from lookm.models.fast.fuse import fuse, replace_below
from lookm.models.fast.linear import is_plain

logger = logging.getLogger(__name__)

#: Up to so many rows our kernel is the faster one (measured from 1 to 512 rows on an EPYC 7003).
FEW_ROWS = 64

#: Weights widened at a time: 64 MiB, for a product with a whole vocabulary.
_PIECE = 1 << 24


class WidenedLinear(nn.Module):
    """`Linear` for inference, `[..., I] -> [..., O]`, in bfloat16; sums are float32."""

    def __init__(self, linear: nn.Linear, few_rows: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias, self._few_rows = linear.weight, linear.bias, few_rows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x_RI = x.reshape(-1, self.in_features)
        few = len(x_RI) <= FEW_ROWS
        out_RO = self._few_rows(x_RI, self.weight, self.bias) if few else self._many_rows(x_RI)
        return out_RO.view(*x.shape[:-1], self.out_features)

    def _many_rows(self, x_RI: torch.Tensor) -> torch.Tensor:
        out_RO = x_RI.new_empty(len(x_RI), self.out_features)
        wide_RI = x_RI.float()
        step = max(1, _PIECE // self.in_features)
        for first in range(0, self.out_features, step):
            piece = slice(first, first + step)
            bias = None if self.bias is None else self.bias[piece].float()
            out_RO[:, piece] = functional.linear(wide_RI, self.weight[piece].float(), bias)
        return out_RO


class WidenedConv(nn.Module):
    """A convolution in float32, of and to bfloat16: patches of an image or of frames."""

    def __init__(self, conv: nn.Conv2d | nn.Conv3d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias  # models look at their type
        self._wide = copy.deepcopy(conv).float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self._wide(x.float())
        return out.to(self.weight.dtype)


def can_widen(model: Any, kernels: ModelKernels) -> bool:
    """Whether these kernels multiply few rows, which they do where torch is slow at it."""
    return kernels.few_rows is not None and model.dtype == torch.bfloat16


@torch.inference_mode()
def widen(model: nn.Module, kernels: ModelKernels) -> None:
    """Replace the modules in place; weights stay what and where they are."""
    few_rows = kernels.few_rows
    assert few_rows is not None

    def replacement_for(module: nn.Module) -> WidenedLinear | WidenedConv | None:
        if is_plain(module) and module.weight.dtype == torch.bfloat16:
            return WidenedLinear(module, few_rows)
        if isinstance(module, nn.Conv2d | nn.Conv3d) and module.weight.dtype == torch.bfloat16:
            return WidenedConv(module)
        return None

    fuse(model, dataclasses.replace(kernels, silu_mul=silu_mul))
    counts = replace_below(model, replacement_for)
    logger.info("model: %d products in float32, of bfloat16 weights", counts.total())


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """`silu(gate) * up` of `[..., 2 M]`, gate first: `[..., M]`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate).mul_(up)
