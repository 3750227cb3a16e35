"""How many conversations fit on a GPU, from a model's config alone: no weights are read.

The same arithmetic as the engine's own plan (`lookm.memory`): pages of K and V, one table for each
layer. Knows configs, not models; what it has to estimate (the weights) can be given instead.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lookm.cache import page_bytes, pages_for
from lookm.config import EngineConfig
from lookm.errors import ConfigError, ModelError
from lookm.memory import GPU_SHARE
from lookm.models.families import family_of
from lookm.models.loading import load_config, resolve_path
from server.config import format_size, parse_size

FRACTIONS = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05)
PAGE_TOKENS = EngineConfig().page_tokens
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What of a model decides how much memory it takes."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    max_context_tokens: int
    num_parameters: int
    dtype: torch.dtype

    @property
    def kv_bytes_per_token(self) -> int:
        """K and V of one token in all layers."""
        return self.page_bytes * self.num_layers // PAGE_TOKENS

    @property
    def page_bytes(self) -> int:
        """K and V of one page: of one layer."""
        return page_bytes(self.num_kv_heads, PAGE_TOKENS, self.head_dim, self.dtype)

    @property
    def weight_bytes(self) -> int:
        """An estimate: parameters times the size of one."""
        return self.num_parameters * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Conversation:
    """One request: its prompt, of which a fraction is kept, and its answer, which is kept."""

    prompt_tokens: int
    answer_tokens: int

    def pages(self, keep: float, num_layers: int) -> int:
        """Pages it holds when its answer is complete."""
        kept_tokens = max(1, int(self.prompt_tokens * keep))
        return num_layers * pages_for(kept_tokens + self.answer_tokens, PAGE_TOKENS)


@dataclass(frozen=True, slots=True)
class Fit:
    """How many conversations fit where each keeps this fraction of its prompt."""

    keep: float
    bytes_each: int
    num_conversations: int


def read_shape(model: str, dtype: str = "auto") -> ModelShape:
    """A checkpoint's shape from its config. Raises `ModelError`, `ConfigError`."""
    config = load_config(resolve_path(model))
    family_of(config)
    text = config.get_text_config()
    heads = text.num_attention_heads
    if dtype not in ("auto", *DTYPES):
        raise ConfigError(f"unknown dtype {dtype!r}: choose auto, {', '.join(DTYPES)}")
    return ModelShape(
        num_layers=text.num_hidden_layers,
        num_kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        max_context_tokens=text.max_position_embeddings,
        num_parameters=_text_parameters(text) + _vision_parameters(config),
        dtype=DTYPES[dtype] if dtype != "auto" else _stored_dtype(config),
    )


def pool_bytes(gpu_bytes: int, weight_bytes: int) -> int:
    """What the page pool gets of a GPU by default: a share of what the weights leave free."""
    free = gpu_bytes - weight_bytes
    if free <= 0:
        raise ConfigError(
            f"the weights take {format_size(weight_bytes)} of {format_size(gpu_bytes)}: take a "
            "bigger GPU or a smaller model"
        )
    return int(free * GPU_SHARE)


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
        pages = conversation.pages(keep, shape.num_layers)
        rows.append(Fit(keep, pages * shape.page_bytes, num_pages // pages))
    return rows


def plan(
    model: str,
    gpu_memory: str,
    weights: str | None = None,
    dtype: str = "auto",
    tokens: tuple[int, int] = (1536, 256),
) -> Iterator[str]:
    """The lines that `lookm plan` prints. Raises `LookmError`, and `ValueError` for a size."""
    shape = read_shape(model, dtype)
    weight_bytes = shape.weight_bytes if weights is None else parse_size(weights)
    pool = pool_bytes(parse_size(gpu_memory), weight_bytes)
    conversation = Conversation(*tokens)
    if sum(tokens) > shape.max_context_tokens:
        raise ConfigError(
            f"{model} holds {shape.max_context_tokens:,} tokens, prompt and answer together: give "
            "a smaller --prompt-tokens or --answer-tokens"
        )
    yield (
        f"{model}: {shape.num_layers} layers x {shape.num_kv_heads} KV heads x "
        f"{shape.head_dim} x 2 (K and V) x {shape.dtype.itemsize} bytes "
        f"({str(shape.dtype).removeprefix('torch.')})"
    )
    yield f"KV cache    {format_size(shape.kv_bytes_per_token)} a token"
    yield f"weights     {format_size(weight_bytes)}{' (estimated)' if weights is None else ''}"
    yield f"page pool   {format_size(pool)}: {pool // shape.kv_bytes_per_token:,} tokens"
    yield ""
    yield "Conversations that fit together, of {:,} prompt tokens and {:,} answered:".format(
        *tokens
    )
    rows = fits(shape, pool, conversation)
    yield from table(rows)
    if max(row.num_conversations for row in rows) > (running := EngineConfig().max_running):
        yield ""
        yield f"More than {running} at a time: raise --max-running of lookm serve."


def table(rows: Sequence[Fit]) -> Iterator[str]:
    """A header and one line for each fraction; the first row is what others are compared with."""
    yield f"{'kept':>6}  {'each':>10}  {'conversations':>13}  {'against full':>12}"
    for row in rows:
        times = row.num_conversations / max(1, rows[0].num_conversations)
        yield (
            f"{row.keep:>6.0%}  {format_size(row.bytes_each):>10}  {row.num_conversations:>13,}  "
            f"{times:>11.1f}x"
        )


def _stored_dtype(config: Any) -> torch.dtype:
    """The weights' own type, as `--dtype auto` takes it on a GPU."""
    return DTYPES.get(str(getattr(config, "dtype", None)).removeprefix("torch."), torch.float32)


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
