"""Faster twins of a text model's modules on CUDA; the rest is left untouched.

A decoding layer of transformers' is about forty launches, and at small batches launches, not bytes,
would decide the speed of a step. Here it is thirteen: q, k and v are one matrix product, gate and
up another, a norm, a rotation and an activation one kernel each. As in `packed`, a twin is taken
only where a trial on random rows shows that it computes what the module does. Knows modules; knows
nothing about families, pages or policies.
"""

import logging
from typing import Any

import torch
from torch import nn

from lookm.attention.kernels.triton_rows import MAX_ROW, rms_norm, rotate, silu_mul
from lookm.models.interface import attend

logger = logging.getLogger(__name__)

TRIAL_ROWS = 7


class FusedNorm(nn.Module):
    """`weight * (x / sqrt(mean(x^2) + epsilon))` over the last dimension."""

    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight, self.epsilon = weight, epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.weight, self.epsilon)


class FusedMLP(nn.Module):
    """`down(silu(gate(x)) * up(x))` with gate and up as one product."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.gate_up_proj = _joined(module.gate_proj, module.up_proj)
        self.down_proj = module.down_proj

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down_proj(silu_mul(self.gate_up_proj(x)))
        return out


class FusedAttention(nn.Module):
    """q, k and v as one product, rotated in place; then our attention, then the output product."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.qkv_proj = _joined(module.q_proj, module.k_proj, module.v_proj)
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
        cos_1TD, sin_1TD = position_embeddings
        num_tokens = hidden_states.shape[1]
        qkv_TC = self.qkv_proj(hidden_states[0])
        rotate(qkv_TC, cos_1TD[0], sin_1TD[0], self.num_heads + self.num_kv_heads)
        heads = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        qkv_1HTD = qkv_TC.view(1, num_tokens, sum(heads), self.head_dim).transpose(1, 2)
        q, k, v = qkv_1HTD.split(heads, dim=1)
        kwargs["sliding_window"] = self.sliding_window
        out_1THD, _ = attend(self, q, k, v, attention_mask, scaling=self.scaling, **kwargs)
        out: torch.Tensor = self.o_proj(out_1THD.reshape(1, num_tokens, -1))
        return out, None


@torch.inference_mode()
def fuse(text_model: nn.Module) -> None:
    """Replace the modules in place. Merged weights take the place of their parts."""
    counts = dict.fromkeys((FusedNorm, FusedMLP, FusedAttention), 0)
    _fuse_below(text_model, counts)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the parts' memory, to whoever plans with what is free
    told = ", ".join(f"{count} {kind.__name__}" for kind, count in counts.items())
    logger.info("model: %s", told)


def _fuse_below(parent: nn.Module, counts: dict[Any, int]) -> None:
    """Depth first, holding one layer's old modules at a time: so much exists twice."""
    for name, child in list(parent.named_children()):
        twin = _norm(child) or _mlp(child) or _attention(child)
        if twin is None:
            _fuse_below(child, counts)
        else:
            setattr(parent, name, twin)
            counts[type(twin)] += 1


def _joined(*linears: nn.Linear) -> nn.Linear:
    """One product whose outputs are theirs, one after the other."""
    weight = torch.cat([linear.weight for linear in linears])
    joined = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    joined.weight = nn.Parameter(weight, requires_grad=False)
    biases: list[torch.Tensor] = [each.bias for each in linears if each.bias is not None]
    if biases:
        joined.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return joined


def _norm(module: Any) -> nn.Module | None:
    weight = getattr(module, "weight", None)
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not type(module).__name__.endswith("RMSNorm") or not isinstance(epsilon, float):
        return None
    if not isinstance(weight, nn.Parameter) or weight.dim() != 1 or len(weight) > MAX_ROW:
        return None
    x = _noise(len(weight), weight)
    fused = FusedNorm(weight, epsilon)
    return fused if _close(module(x), fused(x)) else None


def _mlp(module: Any) -> nn.Module | None:
    if not _has_linears(module, "gate_proj", "up_proj", "down_proj"):
        return None
    x = _noise(module.gate_proj.in_features, module.gate_proj.weight)
    fused = FusedMLP(module)
    return fused if _close(module(x), fused(x)) else None


def _attention(module: Any) -> nn.Module | None:
    """The twin of an attention that is Llama's in all it hands to ours and does with the answer."""
    if not _has_linears(module, "q_proj", "k_proj", "v_proj", "o_proj"):
        return None
    if not all(hasattr(module, name) for name in ("head_dim", "scaling", "layer_idx")):
        return None
    fused = FusedAttention(module)
    x = _noise(module.q_proj.in_features, module.q_proj.weight)[None]
    angle_1TD = _noise(module.head_dim // 2, module.q_proj.weight).float().repeat(1, 2)[None]
    position = (angle_1TD.cos().to(x.dtype), angle_1TD.sin().to(x.dtype))
    seen: list[_Seen] = []
    for each in (module, fused):
        context = _Seen()
        try:
            out = each(hidden_states=x, position_embeddings=position, attention_mask=None,
                       kv_context=context)[0]  # fmt: skip
        except (TypeError, ValueError, RuntimeError):  # takes other arguments: not Llama's
            return None
        context.tensors.append(out)
        seen.append(context)
    theirs, ours = seen
    same = theirs.numbers == ours.numbers and all(
        _close(a, b) for a, b in zip(theirs.tensors, ours.tensors, strict=True)
    )
    return fused if same else None


class _Seen:
    """Notes what an attention module hands to ours (`interface.StepContext`)."""

    def __init__(self) -> None:
        self.tensors: list[torch.Tensor] = []
        self.numbers: tuple[int, float, int | None] | None = None

    def attend(
        self,
        layer: int,
        q_HTD: torch.Tensor,
        k_KTD: torch.Tensor,
        v_KTD: torch.Tensor,
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        """Something that depends on all three, in the place of attention."""
        self.tensors += [q_HTD, k_KTD, v_KTD]
        self.numbers = (layer, scale, window)
        group = q_HTD.shape[0] // k_KTD.shape[0]
        return (q_HTD + (k_KTD + v_KTD).repeat_interleave(group, 0)).transpose(0, 1)


def _has_linears(module: nn.Module, *names: str) -> bool:
    """Whether these are its products, and it has no modules with weights besides."""
    own = dict(module.named_children())
    if not all(type(own.get(name)) is nn.Linear for name in names):
        return False
    if len({own[name].bias is None for name in names[:-1]}) > 1:  # those that are joined
        return False
    return not any(list(child.parameters()) for name, child in own.items() if name not in names)


def _noise(size: int, like: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(TRIAL_ROWS, size, generator=generator).to(like.device, like.dtype)


def _close(expected: torch.Tensor, found: torch.Tensor) -> bool:
    """Equal up to rounding, relative to the largest number of a row."""
    if expected.shape != found.shape:
        return False
    tolerance = 1e-4 if expected.dtype == torch.float32 else 2**-5
    error = (found.float() - expected.float()).abs().amax(dim=-1)
    return bool((error <= tolerance * expected.float().abs().amax(dim=-1)).all())
