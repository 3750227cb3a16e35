"""A transformers cache that is looked at once, for a plain model and its own `generate()`.

transformers gives a cache keys and values, and its attention function queries, keys and values, but
neither knows the other. Here the cache's layer rides on the key tensor it returns, so that the
attention function finds it again. Knows transformers' cache and attention interfaces; what is kept
is decided by the function it is given.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from transformers import AttentionInterface
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lookm.errors import RequestError
from lookm.kept import KeptPositions

_ATTENTION = "lookm-plain"

#: `(layer, q_HTD, k_KTD, v_KTD, scale) -> (out_THD, kept_key_KSD, kept_value_KSD)`
LookFunction = Callable[
    [int, torch.Tensor, torch.Tensor, torch.Tensor, float],
    tuple[torch.Tensor, torch.Tensor, torch.Tensor],
]


class Held(Protocol):
    """Knows what was kept, when the prompt is through."""

    def positions(self) -> KeptPositions: ...


class LookedAtCache(Cache):  # type: ignore[misc]  # transformers is untyped here
    """The cache of one prompt; `kept_tokens` has each layer's rows after the prefill, `positions`
    says which they are."""

    def __init__(self, look: LookFunction, num_layers: int, held: Held) -> None:
        super().__init__(layers=[_Layer(look, layer) for layer in range(num_layers)])
        self._held = held

    @property
    def positions(self) -> KeptPositions:
        """Which tokens of the prompt each layer and KV head kept; for `lookm.show`."""
        return self._held.positions()

    @property
    def kept_tokens(self) -> list[int]:
        """Rows that each layer kept of the prompt."""
        return [layer.kept_tokens for layer in self.layers]


class _Layer(DynamicLayer):  # type: ignore[misc]
    """Rows of one layer. `seen` counts tokens, not rows: the next position follows from it."""

    def __init__(self, look: LookFunction, index: int) -> None:
        super().__init__()
        self.look = look
        self.index = index
        self.seen = 0
        self.kept_tokens = 0
        self.window: int | None = None  # tokens the layer sees, where that is not all

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The prompt passes through whole; what follows is appended to what was kept of it."""
        first = self.seen == 0
        if key_states.shape[0] != 1:
            raise RequestError("a compressed cache takes one prompt at a time, without padding")
        if not first and key_states.shape[2] != 1:
            raise RequestError("a compressed cache is looked at once; start a new one for more")
        self.seen += key_states.shape[2]
        if not first:
            self.check_window()
            keys, values = super().update(key_states, value_states, *args, **kwargs)
            return keys, values
        self.lazy_initialization(key_states, value_states)
        # The attention function sees only tensors: the layer rides on the keys it will be handed.
        key_states.lookm_layer = self  # type: ignore[attr-defined]
        return key_states, value_states

    def keep(self, key_KSD: torch.Tensor, value_KSD: torch.Tensor) -> None:
        """Store what the look at the prompt kept."""
        self.keys, self.values = key_KSD[None], value_KSD[None]
        self.kept_tokens = key_KSD.shape[1]

    def check_window(self) -> None:
        """Rows do not say how old they are, so a window must hold all. Raises `RequestError`."""
        if self.window is not None and self.seen > self.window:
            raise RequestError(
                f"a layer of this model sees the last {self.window} tokens only, and there are "
                "more: use lookm.Engine, which leaves such layers whole"
            )

    def get_seq_length(self) -> int:
        """Tokens seen: transformers derives the next position from it."""
        return self.seen


@contextlib.contextmanager
def looking(model: Any) -> Iterator[None]:
    """Within it, the model's text attention looks at prompts whose cache is a `LookedAtCache`."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    AttentionInterface.register(_ATTENTION, _attend)
    model.set_attn_implementation({"text_config": _ATTENTION})
    try:
        yield
    finally:
        model.set_attn_implementation({"text_config": before})


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    layer: _Layer | None = getattr(key, "lookm_layer", None)
    if layer is not None:
        if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
            raise RequestError("softcapped attention and attention sinks are not supported")
        layer.window = kwargs.get("sliding_window")
        layer.check_window()
        scale = kwargs["scaling"]
        out_THD, *kept = layer.look(layer.index, query[0], key[0], value[0], scale)
        layer.keep(*kept)
        return out_THD[None], None
    if query.shape[2] != 1:
        raise RequestError("inside `compressing`, pass the cache it gives as past_key_values")
    out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return out, None
