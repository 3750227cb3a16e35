"""How many conversations fit on a GPU, from a model's config alone: no weights are read.

The engine's own arithmetic (`lookm.sizing`: what a GPU leaves for pages, how many pages are enough,
how many conversations they hold), with two estimates in the place of what the engine measures:

    weights   parameters times the size of one: within 6 %; or given with --weights
    prefill   what a decoder layer holds at its peak (`ModelShape.prefill_bytes`): within 2 % of
              what the modules allocate

Left out is what only a GPU tells: the workspace of attention and compression; CUDA's own context,
about half a GiB; and what encoding large images takes where that is more than the prefill (nothing
with LLaVA, whose images are small; with Qwen2.5-VL, counted alike, 10 GiB for 16 of 4 megapixels).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch

from lookm.config import DType, EngineConfig, KvCacheDType
from lookm.device import choose_dtype
from lookm.errors import ConfigError, ModelError
from lookm.models.families import family_of
from lookm.models.loading import find_config, load_config
from lookm.pages import PageLayout
from lookm.sizing import (
    CacheShape,
    enough_pages,
    gpu_pool_bytes,
    longest_prefill_tokens,
    transfer_bytes,
)
from server.sizes import format_size

FRACTIONS = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05)
DEFAULTS = EngineConfig()
PAGE_TOKENS = DEFAULTS.page_tokens
GPU = torch.device("cuda")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What of a model decides how much memory it takes."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    max_context_tokens: int
    num_parameters: int
    num_linear_parameters: int
    dtype: torch.dtype
    windows_L: tuple[int | None, ...] = ()
    kv_cache_dtype: KvCacheDType = "auto"

    @property
    def cache(self) -> CacheShape:
        """What a conversation takes of the pool."""
        windows_L = self.windows_L or (None,) * self.num_layers
        return CacheShape(PAGE_TOKENS, self.page_bytes, windows_L)

    @property
    def kv_bytes_per_token(self) -> int:
        """K and V of one token in all layers."""
        return self.page_bytes * self.num_layers // PAGE_TOKENS

    @property
    def page_bytes(self) -> int:
        """K and V of one page: of one layer."""
        return self.layout.page_bytes

    @property
    def layout(self) -> PageLayout:
        """What is in a page."""
        kinds = (self.dtype, self.kv_cache_dtype)
        return PageLayout(self.num_kv_heads, PAGE_TOKENS, self.head_dim, *kinds)

    @property
    def weight_bytes(self) -> int:
        """An estimate: parameters times the size of one."""
        return self.num_parameters * self.dtype.itemsize

    def prefill_bytes(self, num_tokens: int) -> int:
        """What a prefill takes at its peak, which is in a gated MLP; an estimate.

        A token holds there its gate, up and their product (3 I); its embedding, the layer's input,
        the residual and the norm's output (4 E); and cosine and sine (2 D).
        """
        numbers = 3 * self.intermediate_size + 4 * self.hidden_size + 2 * self.head_dim
        return num_tokens * numbers * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Conversation:
    """One request: its prompt, of which a fraction is kept, and its answer, which is kept."""

    prompt_tokens: int
    answer_tokens: int

    def kept(self, keep: float) -> int:
        """Rows that are kept of its prompt."""
        return max(1, int(self.prompt_tokens * keep))


@dataclass(frozen=True, slots=True)
class Fit:
    """How many conversations fit where each keeps this fraction of its prompt."""

    keep: float
    bytes_each: int
    num_conversations: int


def read_shape(model: str, dtype: DType = "auto") -> ModelShape:
    """A checkpoint's shape from its config. Raises `ModelError`, `ConfigError`."""
    check_dtype(dtype)
    checkpoint = find_config(model)
    return shape_of(load_config(str(checkpoint.folder)), choose_dtype(dtype, checkpoint.dtype, GPU))


def check_dtype(name: str) -> None:
    """Raises `ConfigError` for a type that is none."""
    if name not in (names := get_args(DType)):
        raise ConfigError(f"unknown dtype {name!r}: choose {', '.join(names)}")


def shape_of(config: Any, dtype: torch.dtype, num_parameters: int | None = None) -> ModelShape:
    """From a transformers config; parameters are estimated where they are not known."""
    family_of(config)
    text = config.get_text_config()
    heads = text.num_attention_heads
    return ModelShape(
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        num_layers=text.num_hidden_layers,
        num_kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        max_context_tokens=text.max_position_embeddings,
        num_parameters=num_parameters or _text_parameters(text) + _vision_parameters(config),
        num_linear_parameters=_linear_parameters(text),
        dtype=dtype,
        windows_L=_windows(text),
    )


def pool_bytes(
    shape: ModelShape, gpu_bytes: int, weight_bytes: int, config: EngineConfig = DEFAULTS
) -> int:
    """What the page pool gets of a GPU. Raises `ConfigError` where nothing is left for it."""
    free = gpu_bytes - weight_bytes
    if free <= 0:
        raise ConfigError(
            f"the weights take {format_size(weight_bytes)} of {format_size(gpu_bytes)}: take a "
            "bigger GPU or a smaller model"
        )
    context = config.max_context_tokens or shape.max_context_tokens
    longest = longest_prefill_tokens(config, context)
    step = shape.prefill_bytes(longest)
    if config.prompt_store_bytes != 0:
        step += transfer_bytes(shape.layout.raw.page_bytes, PAGE_TOKENS, longest)
    pool = gpu_pool_bytes(config, free, step)
    if pool < shape.num_layers * shape.page_bytes:
        raise ConfigError(
            f"nothing is left for the cache: of {format_size(free)} beside the weights, the "
            f"prefill of {longest:,} tokens takes {format_size(step)} and "
            f"images {format_size(config.image_cache_bytes)}: take a bigger GPU, or give a smaller "
            "--max-context-tokens, here and to lookm serve"
        )
    return min(pool, enough_pages(config, context, shape.num_layers) * shape.page_bytes)


def fits(
    shape: ModelShape,
    pool: int,
    conversation: Conversation,
    fractions: Sequence[float] = FRACTIONS,
) -> list[Fit]:
    """One row for each fraction kept."""
    cache, rows = shape.cache, []
    for keep in fractions:
        rows_L = cache.rows(
            conversation.prompt_tokens, conversation.kept(keep), conversation.answer_tokens
        )
        together = cache.conversations(pool // cache.page_bytes, rows_L)
        rows.append(Fit(keep, cache.bytes(rows_L), together))
    return rows


def _windows(text: Any) -> tuple[int | None, ...]:
    """For each layer how many tokens it sees, None for all."""
    window: int | None = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"] * text.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _text_parameters(text: Any) -> int:
    """Weights of a dense decoder: attention, gated MLP, embeddings. Raises `ModelError`."""
    if getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None):
        raise ModelError("a mixture of experts: give the size of its files with --weights")
    tied = getattr(text, "tie_word_embeddings", 0)
    embeddings = text.vocab_size * text.hidden_size * (1 if tied else 2)
    return _linear_parameters(text) + int(embeddings)


def _linear_parameters(text: Any) -> int:
    """Those of the linear layers of a dense decoder, without the one behind the last."""
    hidden, heads = text.hidden_size, text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or hidden // heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    attention = 2 * hidden * head_dim * (heads + kv_heads)
    return int(text.num_hidden_layers * (attention + 3 * hidden * text.intermediate_size))


def _vision_parameters(config: Any) -> int:
    """Weights of a vision transformer and the projector, within some per cent."""
    vision, text_hidden = config.vision_config, config.get_text_config().hidden_size
    hidden: int = getattr(vision, "embed_dim", None) or vision.hidden_size
    depth: int = getattr(vision, "depth", None) or vision.num_hidden_layers
    wide: int = getattr(vision, "intermediate_size", None) or 4 * hidden
    projector: int = text_hidden * (hidden + text_hidden)
    return depth * (4 * hidden * hidden + 2 * hidden * wide) + projector
