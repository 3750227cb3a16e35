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

    def check(self) -> None:
        """Every layer that saw the prompt was looked at. Raises `RequestError`."""
        for layer in self.layers:
            layer.check_looked_at()


class _Layer(DynamicLayer):  # type: ignore[misc]
    """Rows of one layer. `seen` counts tokens, not rows: the next position follows from it."""

    def __init__(self, look: LookFunction, index: int) -> None:
        super().__init__()
        self.look = look
        self.index = index
        self.seen = 0
        self.kept_tokens = 0
        self.looked_at = False
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
            self.check_looked_at()
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
        self.looked_at = True

    def check_looked_at(self) -> None:
        """A layer that saw a prompt has stored rows of it. Raises `RequestError`."""
        if self.seen and not self.looked_at:
            raise RequestError(
                f"layer {self.index} of this model does not hand its keys to transformers' "
                "attention interface, so its prompt cannot be looked at"
            )

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
    """Within it, the model's text attention looks at prompts whose cache is a `LookedAtCache`.

    Raises `RequestError` for a model whose attention transformers cannot exchange, or which keeps
    something else than keys and values.
    """
    config = model.config.get_text_config()
    _check_kind(model, config)
    before = config._attn_implementation
    AttentionInterface.register(_ATTENTION, _attend)
    _set_attention(model, config, _ATTENTION)
    try:
        if config._attn_implementation != _ATTENTION:
            raise RequestError(f"the attention of {model.config.model_type} cannot be exchanged")
        yield
    finally:
        _set_attention(model, config, before)


def _set_attention(model: Any, config: Any, name: str) -> None:
    """Exchange the attention of the text model alone, wherever its config is."""
    if config is model.config:
        # By the key "" the model itself; its other parts, where there are any, keep theirs.
        model.set_attn_implementation({"": name})
        return
    key = next(key for key in model.config.sub_configs if getattr(model.config, key) is config)
    model.set_attn_implementation({key: name})


def _check_kind(model: Any, config: Any) -> None:
    kinds = set(getattr(config, "layer_types", None) or ())
    other = kinds - {"full_attention", "sliding_attention"}
    if getattr(model.config, "is_encoder_decoder", False):
        other.add("an encoder and a decoder")
    if other:
        raise RequestError(
            f"{model.config.model_type} has {', '.join(sorted(other))}: only plain attention over "
            "keys and values can be compressed"
        )


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
        if layer.looked_at or value.shape != key.shape:
            raise RequestError("this model attends to other values than those it caches")
        layer.window = kwargs.get("sliding_window")
        layer.check_window()
        _check_positions(layer, kwargs.get("position_ids"))
        scale = kwargs["scaling"]
        out_THD, *kept = layer.look(layer.index, query[0], key[0], value[0], scale)
        layer.keep(*kept)
        return out_THD[None], None
    if query.shape[2] != 1:
        raise RequestError("inside `compressing`, pass the cache it gives as past_key_values")
    out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return out, None


def _check_positions(layer: _Layer, position_ids: torch.Tensor | None) -> None:
    """A padded prompt is known by its positions: the mask that would hide its padding is not passed
    to attention functions that transformers does not know."""
    if layer.index or position_ids is None or position_ids.dim() != 2:
        return
    if bool((position_ids.diff() != 1).any()):
        raise RequestError("a compressed cache takes one prompt at a time, without padding")
