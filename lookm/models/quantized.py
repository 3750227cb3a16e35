"""Weights as a byte a number: the linear layers of the language model, on load.

    weight[o, i]  ~  int8[o, i] * scale[o]        scale[o] = max |weight[o, :]| / 127

Symmetric, a scale for each output: what torchao calls int8 weight-only. It is done here because
torchao's product (0.18, torch 2.13, CPU) makes the whole weight wide again for every token: three
to seven times slower at one row than torch's own int8 product, which is used here for few rows.
Vision tower, embeddings and the last layer stay as they are. Fused paths know plain layers only
and stand back. Knows modules; knows nothing about families or checkpoints.
"""

import logging

import torch
from torch import nn
from torch.nn import functional

from lookm.models.fast.linear import is_plain

logger = logging.getLogger(__name__)

LARGEST = 127
FEW_ROWS = 16  # up to so many torch's own product reads bytes; more are worth the whole weight
_WHOLE = (32, 4)  # inputs and outputs come in these: at 40 inputs torch 2.13 reads past the end
_PIECE = 1 << 24  # numbers of a weight that are wide at a time


class Int8Linear(nn.Module):
    """`Linear` for inference, `[..., I] -> [..., O]`; inputs and outputs are as the model's."""

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        sizes = zip((self.in_features, self.out_features), _WHOLE, strict=True)
        self._few_rows = FEW_ROWS if all(size % each == 0 for size, each in sizes) else 0
        weight_OI, scale_O = quantized(linear.weight.detach())
        self.register_buffer("weight", weight_OI)
        self.register_buffer("scale", scale_O)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x_RI = x.reshape(-1, self.in_features)
        if x.device.type == "cpu" and len(x_RI) <= self._few_rows:
            out_RO: torch.Tensor = torch._weight_int8pack_mm(
                x_RI.contiguous(), self.weight, self.scale
            )
        else:
            out_RO = many_rows(x_RI, self.weight, self.scale)
        if self.bias is not None:
            out_RO += self.bias
        return out_RO.view(*x.shape[:-1], self.out_features)


def quantized(weight_OI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 `[O, I]` and a scale `[O]` in the weight's own type, which the bytes are of."""
    largest_O = weight_OI.abs().amax(dim=1).float()
    scale_O = (largest_O / LARGEST).clamp(min=torch.finfo(torch.float32).tiny).to(weight_OI.dtype)
    scale_O = torch.where(scale_O == 0, torch.finfo(weight_OI.dtype).tiny, scale_O)
    whole_OI = (weight_OI.float() / scale_O.float()[:, None]).round_()
    return whole_OI.clamp_(-LARGEST, LARGEST).to(torch.int8), scale_O


def many_rows(x_RI: torch.Tensor, weight_OI: torch.Tensor, scale_O: torch.Tensor) -> torch.Tensor:
    """`x @ (weight * scale)^T`, a piece of the weight at a time made wide: bytes are exact there.

    In float32 on a CPU that cannot multiply bfloat16 (`fast.widened`), else in the type of x.
    """
    wide = _wide_type(x_RI)
    out_RO = x_RI.new_empty(len(x_RI), len(weight_OI))
    wide_RI, step = x_RI.to(wide), max(1, _PIECE // weight_OI.shape[1])
    for first in range(0, len(weight_OI), step):
        piece = slice(first, first + step)
        weight, scale = weight_OI[piece].to(wide), scale_O[piece].to(wide)
        if wide == torch.float16:  # sums of bytes would leave its range
            out_RO[:, piece] = functional.linear(wide_RI, weight * scale[:, None])
        else:
            out_RO[:, piece] = functional.linear(wide_RI, weight) * scale
    return out_RO


def quantize_linears(model: nn.Module) -> None:
    """Replace the plain linear layers below `model` in place, one after the other."""
    before, count = _held_bytes(model), 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if is_plain(child):
                setattr(parent, name, Int8Linear(child))
                count += 1
    logger.info(
        "weights: %d linear layers in int8, language model %.2f GiB of %.2f",
        count,
        _held_bytes(model) / 2**30,
        before / 2**30,
    )


def _wide_type(x: torch.Tensor) -> torch.dtype:
    slow = x.device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.float32 if slow else x.dtype


def _held_bytes(model: nn.Module) -> int:
    return sum(each.nbytes for each in (*model.parameters(), *model.buffers()))
