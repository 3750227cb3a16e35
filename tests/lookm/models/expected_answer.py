"""What a compressed answer must be on any family, computed without the engine.

A plain forward of the model, with its own masks, records each layer's queries, keys and values; the
attention matrix is computed whole, in float64; the policy's parts decide; each layer's cache is
replaced by what is kept, and transformers decodes on from there, one token at a time.
"""

from typing import Any, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lookm import CachePolicy
from lookm.attention import spread
from lookm.policy import PromptPolicy, View, compress, resolve
from lookm.types import Needs


class Asked(Protocol):
    """A prompt: what the model is called with, which tokens are images', and where its answer
    begins. `position_rows`: RoPE rows."""

    @property
    def is_image(self) -> torch.Tensor: ...
    @property
    def next_pos(self) -> int: ...
    @property
    def position_rows(self) -> int: ...
    def inputs(self) -> dict[str, Any]: ...


@torch.no_grad()
def compressed_answer(model: Any, prompt: Asked, policy: CachePolicy, num_tokens: int) -> list[int]:
    """Greedy tokens of `model` over a cache compressed once after the prefill."""
    logits, layers = _prefill(model, prompt)
    cache = DynamicCache(config=model.config.get_text_config())
    num_looked = sum(window is None for *_, window, _ in layers)
    opened = PromptPolicy(resolve(policy), prompt.is_image, num_looked)
    for layer, (q, k, v, mask, window, scale) in enumerate(layers):
        if window is None:
            view = _view(q, k, v, mask, scale, prompt, opened.needs, (layer, len(layers)))
            kept = compress(view, opened)
            k, v = kept.key.to(k.dtype), kept.value.to(v.dtype)
        cache.update(k[None], v[None], layer)
    model.set_attn_implementation({"text_config": "without_masks"})
    tokens = [int(logits[0, -1].argmax())]
    for i in range(num_tokens - 1):
        position = torch.tensor([[prompt.next_pos + i]])
        if prompt.position_rows > 1:
            position = position.expand(prompt.position_rows, 1, 1)
        logits = model(
            input_ids=torch.tensor([tokens[-1:]]),
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        ).logits
        tokens.append(int(logits[0, -1].argmax()))
    return tokens


def _prefill(model: Any, prompt: Asked) -> tuple[torch.Tensor, list[tuple[Any, ...]]]:
    """Logits, and `(q, k, v, mask, window, scale)` of each layer."""
    layers: list[tuple[Any, ...]] = []

    def record(module: Any, q: Any, k: Any, v: Any, mask: Any, **kwargs: Any) -> Any:
        window, scale = kwargs.get("sliding_window"), kwargs["scaling"]
        layers.append((q[0], k[0], v[0], mask, window, scale))
        return sdpa_attention_forward(module, q, k, v, mask, **kwargs)

    AttentionInterface.register("record", record)
    AttentionMaskInterface.register("record", sdpa_mask)
    AttentionInterface.register("without_masks", sdpa_attention_forward)
    model.set_attn_implementation({"text_config": "record"})
    logits = model(**prompt.inputs(), use_cache=False).logits
    return logits, layers


def _view(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    prompt: Asked,
    needs: Needs,
    place: tuple[int, int],
) -> View:
    """All the sums a policy may ask for, from the whole attention matrix."""
    q, k, v = q.double(), k.double(), v.double()
    num_heads, num_tokens = k.shape[:2]
    repeated = k.repeat_interleave(q.shape[0] // num_heads, dim=0)
    allowed = torch.ones(num_tokens, num_tokens).tril().bool() if mask is None else mask[0, 0]
    matrix = (q @ repeated.transpose(1, 2) * scale).masked_fill(~allowed, -torch.inf).softmax(-1)
    matrix = matrix.view(num_heads, -1, num_tokens, num_tokens)
    is_image_T = prompt.is_image
    spread_K = spread.measure(
        q, k, scale=scale, is_image_T=is_image_T, needs=needs, mask_TT=allowed
    )
    return View(
        key_KTD=k,
        value_KTD=v,
        is_image_T=is_image_T,
        query_HTD=q,
        scale=scale,
        density_K=spread_K.density_K,
        entropy_K=spread_K.entropy_K,
        sums_KT=matrix.sum(dim=(1, 2)),
        squares_KT=matrix.square().sum(dim=(1, 2)),
        window_KT=matrix[:, :, -max(1, needs.window) :].sum(dim=(1, 2)),
        layer=place[0],
        num_layers=place[1],
    )
