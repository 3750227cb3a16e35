"""What a compressed answer must be: transformers' own cache, compressed by `lookm.compress`.

One request, no pages, no batching: a plain forward records each layer's queries, keys and values,
each layer's cache is replaced by its compressed form, and greedy decoding goes on at the prompt's
original positions.
"""

from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lookm import CachePolicy, compress
from lookm.policy import open_ledger, resolve
from tests.lookm.tiny import IMAGE, Prompt


@torch.no_grad()
def compressed_answer(
    model: Any, prompt: Prompt, policy: CachePolicy, num_tokens: int
) -> list[int]:
    """Greedy tokens of `model` over a cache compressed once after the prefill."""
    layers: dict[int, tuple[torch.Tensor, ...]] = {}

    def record(module: Any, q: Any, k: Any, v: Any, mask: Any, **kwargs: Any) -> Any:
        if q.shape[2] > 1:
            layers[module.layer_idx] = (q[0], k[0], v[0])
        return sdpa_attention_forward(module, q, k, v, mask, **kwargs)

    AttentionInterface.register("record", record)
    model.set_attn_implementation({"text_config": "record"})
    ids = torch.tensor([prompt.ids])
    pixels = torch.from_numpy(np.stack(prompt.pixels)) if prompt.pixels else None
    logits = model(input_ids=ids, pixel_values=pixels, use_cache=False).logits
    cache = DynamicCache()
    num_layers = len(layers)
    is_image = ids[0] == IMAGE
    ledger = open_ledger(resolve(policy), is_image, num_layers)
    for layer in range(num_layers):
        q, k, v = layers[layer]
        depth = {"layer": layer, "num_layers": num_layers, "ledger": ledger}
        kept = compress(q, k, v, is_image, policy, **depth)
        cache.update(kept.key[None], kept.value[None], layer)
    tokens = [int(logits[0, -1].argmax())]
    for position in range(len(prompt.ids), len(prompt.ids) + num_tokens - 1):
        logits = model(
            input_ids=torch.tensor([tokens[-1:]]),
            position_ids=torch.tensor([[position]]),
            past_key_values=cache,
            use_cache=True,
        ).logits
        tokens.append(int(logits[0, -1].argmax()))
    return tokens
