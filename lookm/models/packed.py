"""Faster twins of a model's modules on a CPU in bfloat16; the rest is left untouched.

`Linear` becomes `PackedLinear`: the weight in oneDNN's blocked layout, read at memory speed when
few rows decode (1.5x) and not repacked when many are prefilled (up to 1.9x). A gated MLP becomes
`FusedMLP`, its activation and product done while the matrix products are in the cache, and a root
mean square norm `FusedNorm`, one pass over memory; both only where a trial on random rows shows
that they compute what the module does. Knows modules; knows nothing about families or attention.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lookm.attention.kernels.build import load_kernel

logger = logging.getLogger(__name__)

#: oneDNN chooses the layout by a number of rows: this one's is as good for 1 and for 4,096.
ROWS_HINT = 1024
TRIAL_ROWS = 16


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


class FusedMLP(nn.Module):
    """`down(silu(gate(x)) * up(x))`; the names are transformers'."""

    def __init__(self, gate: PackedLinear, up: PackedLinear, down: PackedLinear) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = gate, up, down

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        linear = torch.ops.mkldnn._linear_pointwise
        gate, up = self.gate_proj, self.up_proj
        activated = linear(x, gate.weight, gate.bias, "swish", [], "")
        out: torch.Tensor = self.down_proj(linear.binary(x, activated, up.weight, up.bias, "mul"))
        return out


class FusedNorm(nn.Module):
    """`weight * (x / sqrt(mean(x^2) + epsilon)).to(bfloat16)` over the last dimension."""

    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight, self.epsilon = weight, epsilon
        self._kernel = load_kernel().rms_norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self._kernel(x.contiguous(), self.weight, self.epsilon)
        return out


def can_pack(model: Any) -> bool:
    """Whether this processor and this torch have the products that `PackedLinear` uses."""
    if model.device.type != "cpu" or model.dtype != torch.bfloat16:
        return False
    return bool(torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported())


@torch.inference_mode()
def pack(model: nn.Module) -> None:
    """Replace the modules in place. A weight that is tied to another one is packed as a copy."""
    linears = _replace(model, _packed)
    norms = _replace(model, _fused_norm)
    mlps = _replace(model, _fused_mlp)
    logger.info("model: %d linear layers packed, %d norms and %d MLPs fused", linears, norms, mlps)


def _replace(model: nn.Module, twin_of: Callable[[nn.Module], nn.Module | None]) -> int:
    """Put twins in the place of every module that has one; returns how many have."""
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if (twin := twin_of(child)) is not None:
                setattr(parent, name, twin)  # at once: the weights exist twice one by one
                count += 1
    return count


def _packed(module: nn.Module) -> PackedLinear | None:
    if type(module) is nn.Linear and module.weight.dtype == torch.bfloat16:
        return PackedLinear(module)
    return None


def _fused_norm(module: nn.Module) -> FusedNorm | None:
    """The twin of a norm, or None where it is not one, or not one like Llama's."""
    weight = getattr(module, "weight", None)
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not type(module).__name__.endswith("RMSNorm") or not isinstance(epsilon, float):
        return None
    if not isinstance(weight, nn.Parameter) or weight.dtype != torch.bfloat16 or weight.dim() != 1:
        return None
    fused = FusedNorm(weight, epsilon)
    return fused if _agree(module, fused, len(weight), tolerance=2**-7) else None


def _fused_mlp(module: nn.Module) -> FusedMLP | None:
    """The twin of a gated MLP with packed layers, or None where it is not one with SiLU."""
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    gate, up, down = parts
    if not all(isinstance(part, PackedLinear) for part in parts) or type(module) is FusedMLP:
        return None
    assert isinstance(gate, PackedLinear)
    assert isinstance(up, PackedLinear)
    assert isinstance(down, PackedLinear)
    fused = FusedMLP(gate, up, down)
    return fused if _agree(module, fused, gate.in_features, tolerance=2**-5) else None


def _agree(module: nn.Module, twin: nn.Module, size: int, *, tolerance: float) -> bool:
    """Whether both give the same for random rows, relative to the largest number of a row."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TRIAL_ROWS, size, generator=generator).to(torch.bfloat16)
    expected, got = module(x).float(), twin(x).float()
    error = (got - expected).abs().amax(dim=1)
    return bool((error <= tolerance * expected.abs().amax(dim=1)).all())
