"""A model on a CPU in bfloat16: its linear layers packed for oneDNN, its other modules fused.

`Linear` becomes `PackedLinear`: the weight in oneDNN's blocked layout, read at memory speed when
few rows decode (1.5x) and not repacked when many are prefilled (up to 1.9x). A gated MLP becomes
`PackedMLP`, its activation and product done while the matrix products are in the cache. Norms and
attention are `fuse`'s. Knows modules; knows nothing about families, pages or policies.
"""

import logging
from typing import Any

import torch
from torch import nn

from lookm.attention import ModelKernels
from lookm.models.fast.fuse import fuse, replace_below
from lookm.models.fast.linear import is_plain

logger = logging.getLogger(__name__)

#: oneDNN chooses the layout by a number of rows: this one's is as good for 1 and for 4,096.
ROWS_HINT = 1024


class PackedLinear(nn.Module):
    """`Linear` for inference, `[..., I] -> [..., O]`. `weight` is opaque: oneDNN's own layout."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS_HINT)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, "none", [], ""
        )
        return out


class PackedMLP(nn.Module):
    """`down(silu(gate(x)) * up(x))`; the names are transformers'."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.gate_proj = PackedLinear(module.gate_proj)
        self.up_proj = PackedLinear(module.up_proj)
        self.down_proj = PackedLinear(module.down_proj)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        linear = torch.ops.mkldnn._linear_pointwise
        gate, up = self.gate_proj, self.up_proj
        activated = linear(x, gate.weight, gate.bias, "swish", [], "")
        out: torch.Tensor = self.down_proj(linear.binary(x, activated, up.weight, up.bias, "mul"))
        return out


def can_pack(model: Any) -> bool:
    """Whether this processor and this torch have the products that `PackedLinear` uses."""
    if model.device.type != "cpu" or model.dtype != torch.bfloat16:
        return False
    return bool(torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def rounded_rows(num_rows: int) -> int:
    """The next of 16 sizes an octave: 1 to 32, 34 .. 64, 68 .. 128, .. 1088, 1152 .. 2048.

    oneDNN compiles every product anew for every number of rows: 60 ms for each length of a prompt
    of a thousand tokens, a fifth of its prefill. Rounded up (by 3 % on average) lengths repeat.
    """
    step = max(1, 1 << ((num_rows - 1).bit_length() - 5)) if num_rows > 32 else 1
    return -(-num_rows // step) * step


@torch.inference_mode()
def pack(model: nn.Module, kernels: ModelKernels) -> None:
    """Replace the modules in place. A weight that is tied to another one is packed as a copy."""
    fuse(model, kernels, PackedMLP)
    counts = replace_below(model, _packed)
    logger.info("model: %d more linear layers packed", counts.total())


def _packed(module: nn.Module) -> PackedLinear | None:
    if is_plain(module) and module.weight.dtype == torch.bfloat16:
        return PackedLinear(module)
    return None
