"""This model, this card: what fits? With weights of fewer bits, keys and values of fewer bits, and
less of them kept.

    weights   as --dtype has them, 16 bits or 32; 8 and 4: the language model's linear layers alone;
              fewer than those have (--weights of a quantised checkpoint) are taken as they are
    KV        as --dtype has them; 8: a byte a number, and a scale for each row and head
    kept      of each prompt

All arithmetic is the engine's own (`lookm.sizing`, through `server.plan`). Reads nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lookm.config import EngineConfig
from lookm.errors import ConfigError
from lookm.sizing import enough_pages, longest_prefill_tokens, promised
from server.plan import (
    Conversation,
    Fit,
    ModelShape,
    fits,
    pool_bytes,
    read_shape,
)
from server.sizes import format_size, parse_size

KEPT = (1.0, 0.5, 0.2)
LINEAR_BYTES = {8: 1.002, 4: 0.53}  # a weight with its scales: one a row; one and a zero for 128
RECOMMENDED = "look-m-plus"


@dataclass(frozen=True, slots=True)
class Row:
    """What fits beside weights of so many bits, keys and values of so many. Without `fits`: none.

    `pool_bytes` is what is left for keys and values. `given`: weights of nobody knows how many
    bits.
    """

    weight_bits: int
    weight_bytes: int
    kv_bits: int
    pool_bytes: int = 0
    fits: tuple[Fit, ...] = ()
    given: bool = False

    @property
    def weights(self) -> str:
        """Their size, for people."""
        return "given" if self.given else f"{self.weight_bits:>2} bits"


def of_kv_bits(shape: ModelShape, bits: int) -> ModelShape:
    """The model where keys and values in the pool have so many bits."""
    return replace(shape, kv_cache_dtype="int8") if bits == 8 else shape


def weight_bytes_of(shape: ModelShape, bits: int, whole_bytes: int) -> int:
    """Of weights that take `whole_bytes` as the model has them."""
    if bits == _whole_bits(shape):
        return whole_bytes
    saved = shape.num_linear_parameters * (shape.dtype.itemsize - LINEAR_BYTES[bits])
    return int(whole_bytes - saved)


def rows(
    shape: ModelShape,
    gpu_bytes: int,
    weight_bytes: int,
    conversation: Conversation,
    config: EngineConfig,
) -> list[Row]:
    """For each size of a weight and of a key. Raises `ConfigError` where nothing at all fits."""
    found, errors, whole_bits = [], [], _whole_bits(shape)
    given = weight_bytes < shape.num_linear_parameters * shape.dtype.itemsize
    for bits in (whole_bits,) if given else (whole_bits, 8, 4):
        held = weight_bytes_of(shape, bits, weight_bytes)
        try:
            pool = pool_bytes(shape, gpu_bytes, held, config)
        except ConfigError as error:
            errors.append(error)
            found.append(Row(bits, held, whole_bits, given=given))
            continue
        for kv_bits in (whole_bits, 8):
            narrow = of_kv_bits(shape, kv_bits)
            context = config.max_context_tokens or shape.max_context_tokens
            most = enough_pages(config, context, shape.num_layers) * narrow.page_bytes
            held_bytes = min(pool, most)
            fit = tuple(fits(narrow, held_bytes, conversation, kept(shape)))
            found.append(Row(bits, held, kv_bits, held_bytes, fit, given))
    if not any(row.fits for row in found):
        raise errors[0]
    return found


def _whole_bits(shape: ModelShape) -> int:
    """Of a number as the model has it."""
    return shape.dtype.itemsize * 8


def kept(shape: ModelShape) -> Sequence[float]:
    """The fractions that the model can keep: without a layer that sees all, all of it."""
    return KEPT if None in shape.cache.windows_L else KEPT[:1]


def table(found: Sequence[Row], max_running: int) -> Iterator[str]:
    """A line for each row; in brackets what the pages would hold if more could run."""
    first = next(row for row in found if row.fits)
    header = "".join(f"{f'{fit.keep:.0%} kept':>14}" for fit in first.fits)
    yield f"{'weights':<19}  {'KV':<7}  {'page pool':>9}{header}"
    for row in found:
        weights = f"{row.weights:<7}  {format_size(row.weight_bytes):>10}"
        if not row.fits:
            yield f"{weights:<19}  do not fit"
            continue
        cells = (promised(fit.num_conversations, max_running) for fit in row.fits)
        counts = "".join(f"{cell:>14}" for cell in cells)
        kv = f"{row.kv_bits} bits"
        yield f"{weights:<19}  {kv:<7}  {format_size(row.pool_bytes):>9}{counts}"


def advised(found: Sequence[Row], max_running: int) -> tuple[Row, Fit] | None:
    """The most of the cache of which `max_running` fit; else of which the most do. A byte a number,
    of keys and values or of weights, costs less than half of the rows. None where weights of 8 bits
    do not fit: those of 4 must come so.
    """
    runs = [row for row in found if row.fits and row.weight_bits >= 8]
    pairs = [(row, fit) for fits in zip(*(row.fits for row in runs), strict=True)
             for row, fit in zip(runs, fits, strict=True)]  # fmt: skip
    enough = (pair for pair in pairs if pair[1].num_conversations >= max_running)
    most = max(pairs, key=lambda pair: pair[1].num_conversations, default=None)
    return next(enough, most)


def serve_line(row: Row, fit: Fit, config: EngineConfig) -> str:
    """The command that runs it. Who is alone has all of its cache, whatever others may get."""
    policy = "full" if fit.keep == 1 else f"{RECOMMENDED}@{fit.keep:g}-1"
    flags = [f"lookm serve --model {config.model} --kv-cache {policy}"]
    if row.weight_bits == 8:
        flags.append("--quantization int8")
    if row.kv_bits == 8:
        flags.append("--kv-cache-dtype int8")
    if config.dtype != "auto":
        flags.append(f"--dtype {config.dtype}")
    flags.append(f"--max-running {config.max_running}")
    if config.max_context_tokens is not None:
        flags.append(f"--max-context-tokens {config.max_context_tokens}")
    return " ".join(flags)


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
    found = rows(shape, parse_size(gpu_memory), weight_bytes, Conversation(*tokens), config)
    longest = longest_prefill_tokens(config, context)
    yield (
        f"{config.model}: {shape.num_layers} layers x {shape.num_kv_heads} KV heads x "
        f"{shape.head_dim} x 2 (K and V) x {shape.dtype.itemsize} bytes "
        f"({str(shape.dtype).removeprefix('torch.')})"
    )
    if windows := [window for window in shape.cache.windows_L if window]:
        yield f"windows     {len(windows)} layers see {min(windows):,} tokens and keep no more"
    yield f"KV cache    {format_size(shape.kv_bytes_per_token)} a token"
    yield f"weights     {format_size(weight_bytes)}{' (estimated)' if weights is None else ''}"
    prefill = format_size(shape.prefill_bytes(longest))
    yield f"prefill     {prefill} for {longest:,} tokens (estimated)"
    stored = shape.kv_bytes_per_token * tokens[0]
    where = f"in the prompt store for each prompt of {tokens[0]:,} tokens"
    yield f"host memory {format_size(stored)} {where}"
    yield ""
    yield (
        f"Conversations of {tokens[0]:,} prompt tokens and {tokens[1]:,} answered that run "
        f"together in {gpu_memory}"
    )
    yield f"(--max-running {config.max_running:,}; in brackets what the pages would hold):"
    yield ""
    yield from table(found, config.max_running)
    yield ""
    yield from _advice(found, config)
    if replicas > 1:
        yield ""
        yield from replica_table(found, stored, replicas, config.max_running)


def replica_table(
    found: Sequence[Row], stored_bytes: int, replicas: int, max_running: int
) -> Iterator[str]:
    """What several servers run together, at the first sizes that fit, and the host memory in which
    the prompts of as many conversations stay known; those between two turns come on top."""
    row = next(row for row in found if row.fits)
    sizes = f"weights: {row.weights.strip()}, keys and values: {row.kv_bits} bits"
    yield f"{replicas:,} servers, each conversation kept on one ({sizes}; docs/scale.md):"
    yield f"{'kept':>6}  {'together':>10}  {'store of each':>13}  {'of all':>12}"
    for fit in row.fits:
        running = min(fit.num_conversations, max_running)
        store = running * stored_bytes
        stores = f"{format_size(store):>13}  {format_size(store * replicas):>12}"
        yield f"{fit.keep:>6.0%}  {running * replicas:>10,}  {stores}"


def _advice(found: Sequence[Row], config: EngineConfig) -> Iterator[str]:
    """How to run what fits."""
    best = advised(found, config.max_running)
    if best is None:
        yield "Weights of 8 bits do not fit: take a bigger GPU or a smaller model."
        return
    row, fit = best
    if fit.num_conversations == 0:
        yield "Not one of them fits: take a bigger GPU, a smaller model, or shorter prompts."
        return
    number = promised(fit.num_conversations, config.max_running)
    yield f"For {number} of them at once, {fit.keep:.0%} kept at the least:"
    yield serve_line(row, fit, config)
