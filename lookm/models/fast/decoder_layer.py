"""A decoding layer as four products and an attention: eight launches where transformers has forty.

    x ── norm, q k v ── rotate ── write, attend ── output, + x ── norm, gate up, gate ── down, + x

Each product is by the kernel that is faster on this GPU (`matmul_choice`). For CUDA, after `fuse`;
a
layer is taken where it is made of what `fuse` made, and a trial shows the same.
"""

import logging
from typing import Any

import torch
from torch import nn

from lookm.models.fast.equivalence import same_in_a_layer
from lookm.models.fast.fuse import FusedAttention, FusedMLP, FusedNorm, replace_below
from lookm.models.fast.matmul_choice import Chooser

logger = logging.getLogger(__name__)

_PARTS = {
    "input_layernorm": FusedNorm,
    "self_attn": FusedAttention,
    "post_attention_layernorm": FusedNorm,
    "mlp": FusedMLP,
}


class FusedLayer(nn.Module):
    """A Llama-like decoding layer; transformers' interface, `[1, T, E]` in and out."""

    def __init__(self, layer: Any, chooser: Chooser) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self._attend = attention.attend
        self.qkv = chooser.product(attention.qkv_proj, norm=layer.input_layernorm)
        self.output = chooser.product(attention.o_proj, residual=True)
        self.gate_up = chooser.product(
            mlp.gate_up_proj, norm=layer.post_attention_layernorm, gate=mlp.gate
        )
        self.down = chooser.product(mlp.down_proj, residual=True)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        qkv_TC = self.qkv(hidden_states)[0]
        rows = self._attend(qkv_TC, position_embeddings, attention_mask, **kwargs)
        hidden_states = self.output(rows, hidden_states)
        out: torch.Tensor = self.down(self.gate_up(hidden_states), hidden_states)
        return out


@torch.inference_mode()
def replace_layers(text_model: nn.Module, owner: Any, chooser: Chooser) -> None:
    """Replace the text model's layers, and the linear layers that remain.

    `owner.lm_head` is one of those.
    """
    layers = replace_below(text_model, lambda module: _layer(module, chooser))
    linears = replace_below(text_model, chooser.replacement_for)
    head = chooser.replacement_for(owner.lm_head)
    owner.lm_head = head or owner.lm_head
    logger.info(
        "model: %d fused layers, %d other linear layers by own kernels",
        layers.total(),
        linears.total() + (head is not None),
    )


def _layer(module: Any, chooser: Chooser) -> nn.Module | None:
    parts = dict(module.named_children())
    if set(parts) != set(_PARTS) or any(type(parts[name]) is not _PARTS[name] for name in parts):
        return None
    fused = FusedLayer(module, chooser)
    return fused if same_in_a_layer(module, fused, module.self_attn.qkv_proj) else None
