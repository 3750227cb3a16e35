"""Any preset on a plain transformers model, without the engine.

    with lookm.compressing(model, "look-m@0.2", ids[0] == model.config.image_token_id) as cache:
        answer = model.generate(input_ids=ids, pixel_values=pixels, past_key_values=cache)

One prompt, no padding, the model's own `generate()`. For researchers; the engine batches, pages and
streams.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from lookm.attention import REFERENCE
from lookm.errors import RequestError
from lookm.held import HeldTokens
from lookm.look import PromptLook
from lookm.models.families import FAMILIES
from lookm.policy import PromptPolicy, resolve
from lookm.types import CachePolicy

if TYPE_CHECKING:
    from lookm.models.transformers_cache import LookedAtCache


@contextlib.contextmanager
def compressing(
    model: Any, policy: CachePolicy | str, is_image: torch.Tensor
) -> Iterator["LookedAtCache"]:
    """A cache for one prompt of `model`, compressed by `policy` as the prompt is prefilled.

    `is_image` `[T]` bool marks the prompt's image tokens. The model's attention is switched inside
    the block and restored after it. Raises `PolicyError`; `RequestError` where the prompt is not
    the one that `is_image` describes, comes in a batch, or in more than one piece, for models whose
    attention is not plainly causal (Gemma 3 with images, PaliGemma, beyond a sliding window), and
    for those that do more than attend to cached keys and values, or do it their own way.
    """
    from lookm.models.transformers_cache import LookedAtCache, looking

    recipe = resolve(policy)
    family = FAMILIES.get(model.config.model_type)
    if family is not None and not family.causal(has_images=bool(is_image.any())):
        raise RequestError(f"tokens of {family.title} see later ones: use lookm.Engine")
    num_layers = model.config.get_text_config().num_hidden_layers
    held = HeldTokens(is_image.shape[0])
    look = PromptLook(
        PromptPolicy(recipe, is_image.cpu(), num_layers, device=model.device),
        is_image.to(model.device),
        num_layers=num_layers,
        backend=REFERENCE,
        held=held,
    )

    @torch.no_grad()
    def look_at(
        layer: int, q_HTD: torch.Tensor, k_KTD: torch.Tensor, v_KTD: torch.Tensor, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if k_KTD.shape[1] != is_image.shape[0]:
            raise RequestError(
                f"the prompt has {k_KTD.shape[1]} tokens, is_image describes {is_image.shape[0]}"
            )
        one = look.layer(layer, scale)
        out_THD = one.attend(q_HTD, k_KTD, v_KTD)
        kept = one.compress(q_HTD, k_KTD, v_KTD)
        return out_THD, kept.key, kept.value

    cache = LookedAtCache(look_at, num_layers, held)
    with looking(model):
        yield cache
    cache.check()
