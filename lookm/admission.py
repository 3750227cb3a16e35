"""What is asked of a request before it may queue. Knows requests and the plan; no queues."""

import torch

from lookm.cache.table import Int64
from lookm.config import EnginePlan
from lookm.errors import PromptTooLongError, RequestError
from lookm.models.adapter import Adapter
from lookm.sizing import CacheShape
from lookm.types import ModelInfo, Request


def check_request(request: Request, text_ids_N: torch.Tensor, adapter: Adapter) -> None:
    """Raises `RequestError` where the prompt is not what the model can read."""
    num_image_tokens = len(request.prompt_ids) - len(text_ids_N)
    if not request.prompt_ids:
        raise RequestError("the prompt is empty", param="messages")
    expected = sum(image.num_tokens for image in request.images)
    if num_image_tokens != expected:
        raise RequestError(
            f"the prompt has {num_image_tokens} image tokens, its images take {expected}",
            param="messages",
        )
    num_ids = adapter.num_embeddings
    if len(text_ids_N) and not 0 <= int(text_ids_N.min()) <= int(text_ids_N.max()) < num_ids:
        raise RequestError(f"token ids must be from 0 to {num_ids - 1}", param="messages")


def check_fits(request: Request, bound_L: Int64, plan: EnginePlan, info: ModelInfo) -> None:
    """Raises `PromptTooLongError` for what could not run even alone."""
    num_prompt, max_tokens = len(request.prompt_ids), request.sampling.max_tokens
    context = plan.max_context_tokens
    if num_prompt + max_tokens > context:
        raise PromptTooLongError(
            f"the prompt has {num_prompt} tokens and max_tokens is {max_tokens}; together they "
            f"exceed the {context} tokens this model can hold",
            param="messages" if num_prompt >= context else "max_tokens",
        )
    if not fits(request, bound_L, info):
        needed_bytes = CacheShape.of(info).bytes(bound_L + max_tokens)
        raise PromptTooLongError(
            f"the request needs {needed_bytes} bytes of KV cache, the pool has "
            f"{plan.capacity_bytes}; keep less of the cache, or ask for fewer tokens"
        )


def fits(request: Request, bound_L: Int64, info: ModelInfo) -> bool:
    """Whether the pool, if it held nobody else, could answer a prompt of so many rows."""
    needed_bytes = CacheShape.of(info).bytes(bound_L + request.sampling.max_tokens)
    return needed_bytes <= info.capacity_bytes
