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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch

from lookm.config import DType, EngineConfig
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
from server.settings import format_size, parse_size

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
    dtype: torch.dtype
    windows_L: tuple[int | None, ...] = ()

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
        layout = PageLayout(self.num_kv_heads, PAGE_TOKENS, self.head_dim, self.dtype)
        return layout.page_bytes

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
        step += transfer_bytes(shape.page_bytes, PAGE_TOKENS, longest)
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
    num_pages = pool // shape.page_bytes
    rows = []
    for keep in fractions:
        rows_L = shape.cache.rows(
            conversation.prompt_tokens, conversation.kept(keep), conversation.answer_tokens
        )
        together = shape.cache.conversations(num_pages, rows_L)
        rows.append(Fit(keep, shape.cache.bytes(rows_L), together))
    return rows


def plan(
    config: EngineConfig,
    gpu_memory: str,
    weights: str | None = None,
    tokens: tuple[int, int] = (1536, 256),
    replicas: int = 1,
) -> Iterator[str]:
    """The lines that `lookm plan` prints, of one server or more, each on a GPU of its own.

    Raises `LookmError`, and `ValueError` for a size.
    """
    shape = read_shape(config.model, config.dtype)
    context = config.max_context_tokens or shape.max_context_tokens
    if sum(tokens) > context or context > shape.max_context_tokens:
        raise ConfigError(
            f"{config.model} holds {min(context, shape.max_context_tokens):,} tokens, prompt and "
            "answer together: give a smaller --prompt-tokens, --answer-tokens or "
            "--max-context-tokens"
        )
    weight_bytes = shape.weight_bytes if weights is None else parse_size(weights)
    pool = pool_bytes(shape, parse_size(gpu_memory), weight_bytes, config)
    longest = longest_prefill_tokens(config, context)
    yield (
        f"{config.model}: {shape.num_layers} layers x {shape.num_kv_heads} KV heads x "
        f"{shape.head_dim} x 2 (K and V) x {shape.dtype.itemsize} bytes "
        f"({str(shape.dtype).removeprefix('torch.')})"
    )
    yield f"KV cache    {format_size(shape.kv_bytes_per_token)} a token"
    yield f"weights     {format_size(weight_bytes)}{' (estimated)' if weights is None else ''}"
    prefill = format_size(shape.prefill_bytes(longest))
    yield f"prefill     {prefill} for {longest:,} tokens (estimated)"
    stored = shape.kv_bytes_per_token * tokens[0]
    yield (
        f"host memory {format_size(stored)} in the prompt store for each prompt of "
        f"{tokens[0]:,} tokens"
    )
    yield f"page pool   {format_size(pool)}: {pool // shape.kv_bytes_per_token:,} tokens"
    yield ""
    yield "Conversations that fit together, of {:,} prompt tokens and {:,} answered:".format(
        *tokens
    )
    rows = fits(shape, pool, Conversation(*tokens))
    yield from table(rows)
    if max(row.num_conversations for row in rows) > config.max_running:
        yield ""
        yield f"More than {config.max_running} at a time: raise --max-running of lookm serve."
    if replicas > 1:
        yield ""
        yield from replica_table(rows, stored, replicas)


def table(rows: Sequence[Fit]) -> Iterator[str]:
    """A header and one line for each fraction; the first row is what others are compared with."""
    yield f"{'kept':>6}  {'each':>10}  {'conversations':>13}  {'against full':>12}"
    for row in rows:
        times = row.num_conversations / max(1, rows[0].num_conversations)
        yield (
            f"{row.keep:>6.0%}  {format_size(row.bytes_each):>10}  {row.num_conversations:>13,}  "
            f"{times:>11.1f}x"
        )


def replica_table(rows: Sequence[Fit], stored_bytes: int, replicas: int) -> Iterator[str]:
    """What several servers hold together, and the host memory in which the prompts of as many
    conversations as run stay known; those between two turns come on top."""
    yield f"{replicas:,} servers, each conversation kept on one (docs/scale.md):"
    yield f"{'kept':>6}  {'together':>10}  {'store of each':>13}  {'of all':>12}"
    for row in rows:
        store = row.num_conversations * stored_bytes
        sizes = f"{format_size(store):>13}  {format_size(store * replicas):>12}"
        yield f"{row.keep:>6.0%}  {row.num_conversations * replicas:>10,}  {sizes}"


def _windows(text: Any) -> tuple[int | None, ...]:
    """For each layer how many tokens it sees, None for all."""
    window: int | None = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"] * text.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _text_parameters(text: Any) -> int:
    """Weights of a dense decoder: attention, gated MLP, embeddings. Raises `ModelError`."""
    if getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None):
        raise ModelError("a mixture of experts: give the size of its files with --weights")
    hidden, heads = text.hidden_size, text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or hidden // heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    attention = 2 * hidden * head_dim * (heads + kv_heads)
    embeddings = text.vocab_size * hidden * (1 if getattr(text, "tie_word_embeddings", 0) else 2)
    layers = text.num_hidden_layers * (attention + 3 * hidden * text.intermediate_size)
    return int(layers + embeddings)


def _vision_parameters(config: Any) -> int:
    """Weights of a vision transformer and the projector, within some per cent."""
    vision, text_hidden = config.vision_config, config.get_text_config().hidden_size
    hidden: int = getattr(vision, "embed_dim", None) or vision.hidden_size
    depth: int = getattr(vision, "depth", None) or vision.num_hidden_layers
    wide: int = getattr(vision, "intermediate_size", None) or 4 * hidden
    projector: int = text_hidden * (hidden + text_hidden)
    return depth * (4 * hidden * hidden + 2 * hidden * wide) + projector
