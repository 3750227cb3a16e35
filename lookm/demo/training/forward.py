"""One training pass of the language model over trees: shared root, many branches.

Knows Llama's arithmetic and reads the weights of an ordinary `LlavaForConditionalGeneration`. Knows
nothing of tasks or text. Every branch token attends to the whole root and to its own branch, which
is exactly the plain causal attention of that conversation alone; nothing is masked beyond that.

Layout of a row of T tokens, P of them root:   [ root ... pad | branch 0 | branch 1 | ... pad ]

Shapes: B rows, T tokens, P root tokens, H heads, D head width, C model width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration

_ROOT_BLOCKS = 4  # causal root attention in so many steps, each against the keys before it


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch of trees as tensors; `ids`, `pos` and `group` are [B, T].

    `group` is 0 in the root, 1, 2, ... in the branches and -1 in padding.
    `picture` [images] are rows of the picture bank, `picture_at` [images * patches] flat token
    places. `answer_at` are the flat places that have to predict `answer_target`; `answer_of`
    numbers their answers.
    """

    ids: Tensor
    pos: Tensor
    group: Tensor
    picture: Tensor
    picture_at: Tensor
    answer_at: Tensor
    answer_target: Tensor
    answer_of: Tensor
    root_tokens: int

    def to(self, device: str) -> Rows:
        """The same rows on a device."""
        return Rows(
            self.ids.to(device),
            self.pos.to(device),
            self.group.to(device),
            self.picture.to(device),
            self.picture_at.to(device),
            self.answer_at.to(device),
            self.answer_target.to(device),
            self.answer_of.to(device),
            self.root_tokens,
        )


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)
    return (wide * weight).to(x.dtype)


def _project(x: Tensor, norm: Tensor, wqkv: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """Normed and rotated queries, keys and plain values, [3, B, T, H, D]."""
    rows, tokens, _ = x.shape
    qkv = F.linear(_norm(x, norm), wqkv).view(rows, tokens, 3, heads, -1)
    qk, v = qkv[:, :, :2].float(), qkv[:, :, 2]
    half = qk.shape[-1] // 2
    turned = torch.cat((-qk[..., half:], qk[..., :half]), dim=-1)
    qk = (qk * cos + turned * sin).to(x.dtype)
    return torch.stack((qk[:, :, 0], qk[:, :, 1], v))


def _finish(x: Tensor, mixed: Tensor, wo: Tensor, norm: Tensor, wgu: Tensor, wd: Tensor) -> Tensor:
    """Output projection and MLP, both with their residual."""
    x = x + F.linear(mixed, wo)
    gate, up = F.linear(_norm(x, norm), wgu).chunk(2, dim=-1)
    return x + F.linear(F.silu(gate) * up, wd)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Softmax attention of [B, H, t, D] on [B, H, s, D]; on CPU SDPA's backward is far slower."""
    scores = torch.matmul(q, k.transpose(-1, -2))
    return torch.matmul(torch.softmax(scores.add_(mask), dim=-1), v)


@dataclass(frozen=True, slots=True)
class _Masks:
    """0 where a token may look, -inf elsewhere: root blocks (start, stop, mask), then branches."""

    root: list[tuple[int, int, Tensor]]
    branch_BLT: Tensor


def _branch_mask(rows: Rows, dtype: torch.dtype) -> Tensor:
    """Branch tokens see the root, and of their own branch what came before: [B, T - P, T]."""
    mine, keys = rows.group[:, rows.root_tokens :, None], rows.group[:, None, :]
    place = torch.arange(rows.group.shape[1], device=rows.group.device)
    before = place[None, rows.root_tokens :, None] >= place[None, None, :]
    may = (keys == 0) | ((keys == mine) & before)
    return torch.zeros(may.shape, dtype=dtype, device=may.device).masked_fill_(~may, float("-inf"))


class TreeForward(nn.Module):
    """Answer logits of trees, from the weights of `model`."""

    def __init__(self, model: LlavaForConditionalGeneration, compiled: bool) -> None:
        super().__init__()
        self.model = model
        text = model.config.text_config
        self.heads = text.num_attention_heads
        self.width = text.hidden_size // self.heads
        self.project: Any = torch.compile(_project, dynamic=True) if compiled else _project
        self.finish: Any = torch.compile(_finish, dynamic=True) if compiled else _finish

    def forward(self, rows: Rows, features: Tensor) -> Tensor:
        """Logits [answer tokens, V] at `rows.answer_at`; `features` [images, patches, C]."""
        dtype = torch.bfloat16
        language: Any = self.model.model.language_model
        table = language.embed_tokens.weight
        x = F.embedding(rows.ids, table).to(dtype)
        if len(rows.picture):
            x = self._with_pictures(x, rows, features.to(dtype))
        cos, sin = self._turns(rows.pos)
        masks = _Masks(self._root_masks(rows.root_tokens, x), _branch_mask(rows, dtype))
        for layer in language.layers:
            x = self._layer(layer, x, (cos, sin), masks)
        chosen = _norm(x.flatten(0, 1)[rows.answer_at], language.norm.weight)
        return F.linear(chosen, table.to(dtype)).float()

    def _with_pictures(self, x: Tensor, rows: Rows, features: Tensor) -> Tensor:
        projector: Any = self.model.model.multi_modal_projector
        one, two = projector.linear_1, projector.linear_2
        seen = F.gelu(F.linear(features, one.weight.to(x.dtype), one.bias.to(x.dtype)))
        seen = F.linear(seen, two.weight.to(x.dtype), two.bias.to(x.dtype))
        flat = x.flatten(0, 1).index_copy(0, rows.picture_at, seen.flatten(0, 1))
        return flat.view_as(x)

    def _turns(self, pos: Tensor) -> tuple[Tensor, Tensor]:
        steps = torch.arange(0, self.width, 2, device=pos.device, dtype=torch.float32)
        angles = pos[..., None].float() * 10000.0 ** (-steps / self.width)
        angles = torch.cat((angles, angles), dim=-1)[:, :, None, None]
        return angles.cos(), angles.sin()

    def _root_masks(self, tokens: int, like: Tensor) -> list[tuple[int, int, Tensor]]:
        """Query blocks of the root: start, stop and causal mask [stop - start, stop]."""
        step = -(-tokens // _ROOT_BLOCKS)
        masks = []
        for start in range(0, tokens, step):
            stop = min(start + step, tokens)
            mask = like.new_full((stop - start, stop), float("-inf")).triu_(start + 1)
            masks.append((start, stop, mask))
        return masks

    def _layer(self, layer: Any, x: Tensor, turns: tuple[Tensor, Tensor], masks: _Masks) -> Tensor:
        mix, mlp, dtype = layer.self_attn, layer.mlp, x.dtype
        scale = self.width**-0.5
        wqkv = torch.cat((mix.q_proj.weight * scale, mix.k_proj.weight, mix.v_proj.weight)).to(
            dtype
        )
        wgu = torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight)).to(dtype)
        qkv = self.project(x, layer.input_layernorm.weight, wqkv, *turns, self.heads)
        q, k, v = (each.transpose(1, 2).contiguous() for each in qkv)
        parts = [
            _attend(q[:, :, start:stop], k[:, :, :stop], v[:, :, :stop], mask)
            for start, stop, mask in masks.root
        ]
        branches = q[:, :, -masks.branch_BLT.shape[1] :]
        parts.append(_attend(branches, k, v, masks.branch_BLT[:, None]))
        mixed = torch.cat(parts, dim=2).transpose(1, 2).flatten(2)
        wo, wd = mix.o_proj.weight.to(dtype), mlp.down_proj.weight.to(dtype)
        return self.finish(x, mixed, wo, layer.post_attention_layernorm.weight, wgu, wd)  # type: ignore[no-any-return]
