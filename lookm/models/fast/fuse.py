"""Faster modules in the place of a model's own; the rest is left untouched.

A decoding layer of transformers' is about forty operations. Here q, k and v are one matrix product,
gate and up another, a norm and a rotation one kernel each: on a CPU one pass over memory instead of
five, on CUDA thirteen launches, of which `decoder_layer` leaves eight. One is taken only where a
trial on random rows shows that it computes what the module does. Knows modules; knows nothing about
families, pages or policies.
"""

import functools
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lookm.attention import ModelKernels
from lookm.models.attention_interface import attend
from lookm.models.fast.equivalence import TRIAL_ROWS, close, noise, same_in_a_layer
from lookm.models.fast.linear import is_plain, joinable, joined

logger = logging.getLogger(__name__)


class FusedNorm(nn.Module):
    """`weight * (x / sqrt(mean(x^2) + epsilon))` over the last dimension."""

    def __init__(self, weight: nn.Parameter, epsilon: float, kernels: ModelKernels) -> None:
        super().__init__()
        self.weight, self.epsilon, self._rms_norm = weight, epsilon, kernels.rms_norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._rms_norm(x, self.weight, self.epsilon)


class FusedMLP(nn.Module):
    """`down(silu(gate(x)) * up(x))` with gate and up as one product."""

    def __init__(self, module: Any, silu_mul: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.gate = silu_mul
        self.gate_up_proj = joined(module.gate_proj, module.up_proj)
        self.down_proj = module.down_proj

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down_proj(self.gate(self.gate_up_proj(x)))
        return out


class FusedAttention(nn.Module):
    """q, k and v as one product, rotated in place; then our attention, then the output product."""

    def __init__(self, module: Any, kernels: ModelKernels) -> None:
        super().__init__()
        self._rotate = kernels.rotate
        self.qkv_proj = joined(module.q_proj, module.k_proj, module.v_proj)
        self.o_proj = module.o_proj
        self.layer_idx, self.scaling = module.layer_idx, module.scaling
        self.sliding_window = getattr(module, "sliding_window", None)
        self.head_dim = module.head_dim
        self.num_heads = module.q_proj.out_features // self.head_dim
        self.num_kv_heads = module.k_proj.out_features // self.head_dim

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """Transformers' interface: `[1, T, E]` in and out."""
        qkv_TC = self.qkv_proj(hidden_states[0])
        rows = self.attend(qkv_TC, position_embeddings, attention_mask, **kwargs)
        out: torch.Tensor = self.o_proj(rows)
        return out, None

    def attend(
        self,
        qkv_TC: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """What is between the two products: `[1, T, H * D]`."""
        cos_1TD, sin_1TD = position_embeddings
        num_tokens = qkv_TC.shape[0]
        self._rotate(qkv_TC, cos_1TD[0], sin_1TD[0], self.num_heads + self.num_kv_heads)
        heads = [self.num_heads, self.num_kv_heads, self.num_kv_heads]
        qkv_1HTD = qkv_TC.view(1, num_tokens, sum(heads), self.head_dim).transpose(1, 2)
        q, k, v = torch.split(qkv_1HTD, heads, dim=1)
        kwargs["sliding_window"] = self.sliding_window
        out_1THD, _ = attend(self, q, k, v, attention_mask, scaling=self.scaling, **kwargs)
        return out_1THD.reshape(1, num_tokens, -1)


@torch.inference_mode()
def fuse(
    model: nn.Module, kernels: ModelKernels, gated_mlp: Callable[[Any], nn.Module] | None = None
) -> None:
    """Replace the modules in place. Merged weights take the place of their parts.

    `gated_mlp` builds what replaces a module with `gate_proj`, `up_proj` and `down_proj`; without
    it they are joined, for `kernels.silu_mul`.
    """

    def replacement_for(module: nn.Module) -> nn.Module | None:
        mlp = _mlp(module, gated_mlp or functools.partial(_fused_mlp, kernels=kernels))
        return mlp or _norm(module, kernels) or _attention(module, kernels)

    counts = replace_below(model, replacement_for)
    summary = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    logger.info("model: %s", summary or "nothing to fuse")


def replace_below(
    parent: nn.Module, replacement_for: Callable[[nn.Module], nn.Module | None]
) -> Counter[str]:
    """Replace all modules that have a replacement; counts them by class.

    Depth first, holding one layer's old modules at a time: so much exists twice.
    """
    counts: Counter[str] = Counter()
    for name, child in list(parent.named_children()):
        replacement = replacement_for(child)
        if replacement is None:
            counts += replace_below(child, replacement_for)
        else:
            setattr(parent, name, replacement)
            counts[type(replacement).__name__] += 1
    return counts


def _norm(module: Any, kernels: ModelKernels) -> nn.Module | None:
    weight = getattr(module, "weight", None)
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not type(module).__name__.endswith("RMSNorm") or not isinstance(epsilon, float):
        return None
    if not isinstance(weight, nn.Parameter) or weight.dim() != 1:
        return None
    if len(weight) > kernels.max_row:
        return None
    x = noise(TRIAL_ROWS, len(weight), weight)
    fused = FusedNorm(weight, epsilon, kernels)
    return fused if close(module(x), fused(x)) else None


def _fused_mlp(module: Any, kernels: ModelKernels) -> nn.Module:
    assert kernels.silu_mul is not None, "kernels without it come with an MLP of their own"
    return FusedMLP(module, kernels.silu_mul)


def _mlp(module: Any, gated_mlp: Callable[[Any], nn.Module]) -> nn.Module | None:
    if not _has_linears(module, "gate_proj", "up_proj", "down_proj"):
        return None
    x = noise(TRIAL_ROWS, module.gate_proj.in_features, module.gate_proj.weight)
    fused = gated_mlp(module)
    return fused if close(module(x), fused(x)) else None


def _attention(module: Any, kernels: ModelKernels) -> nn.Module | None:
    """What replaces an attention that hands to ours what Llama's does, and goes on alike."""
    if not _has_linears(module, "q_proj", "k_proj", "v_proj", "o_proj"):
        return None
    if not all(hasattr(module, name) for name in ("head_dim", "scaling", "layer_idx")):
        return None
    fused = FusedAttention(module, kernels)
    return fused if same_in_a_layer(module, fused, module.q_proj) else None


def _has_linears(module: nn.Module, *names: str) -> bool:
    """Whether these are its products, and it has no modules with weights besides."""
    own = dict(module.named_children())
    if not set(names) <= set(own) or not joinable(*(own[name] for name in names[:-1])):
        return False
    if not is_plain(own[names[-1]]):
        return False
    return not any(list(child.parameters()) for name, child in own.items() if name not in names)
