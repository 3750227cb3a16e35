"""What the same pool holds of a model that is too large for this machine: arithmetic, no run.

The arithmetic is the engine's own (`server.plan`, as in `lookm plan`): pages of K and V, one
table for each layer, the prompt's kept part and the whole answer.
"""

from collections.abc import Sequence
from typing import Any

import torch

from server.plan import Conversation, ModelShape, fits, pool_bytes

MODEL = "LLaVA-1.5-7B"
SHAPE = ModelShape(  # as in the config of llava-hf/llava-1.5-7b-hf
    hidden_size=4096,
    intermediate_size=11008,
    num_layers=32,
    num_kv_heads=32,
    head_dim=128,
    max_context_tokens=4096,
    num_parameters=7_063_427_072,
    num_linear_parameters=6_476_005_376,
    dtype=torch.float16,
)
GPU_BYTES = 80 * 2**30
IMAGES, IMAGE_TOKENS, TEXT_TOKENS = 6, 576, 64
ANSWERS_TOKENS = (64, 256)


def on_paper(fractions: Sequence[float]) -> dict[str, Any]:
    """Conversations of six images by fraction kept, for a short and for a long answer.

    An answer is kept whole, so the longer it is, the less a small prompt helps.
    """
    pool = pool_bytes(SHAPE, GPU_BYTES, SHAPE.weight_bytes)
    prompt_tokens = IMAGES * IMAGE_TOKENS + TEXT_TOKENS
    rows = []
    for answer_tokens in ANSWERS_TOKENS:
        found = fits(SHAPE, pool, Conversation(prompt_tokens, answer_tokens), fractions)
        for fit in found:
            rows.append(
                {
                    "keep": fit.keep,
                    "answer_tokens": answer_tokens,
                    "bytes_each": fit.bytes_each,
                    "conversations": fit.num_conversations,
                    "ratio": fit.num_conversations / found[0].num_conversations,
                }
            )
    return {
        "model": MODEL,
        "gpu_bytes": GPU_BYTES,
        "weight_bytes": SHAPE.weight_bytes,
        "pool_bytes": pool,
        "images": IMAGES,
        "image_tokens": IMAGE_TOKENS,
        "prompt_tokens": prompt_tokens,
        "rows": rows,
    }
