"""Whether a checkpoint will work here, and a card of what it is: in seconds, no weight is read.

Everything that a start would refuse is looked at as a start does; then the model's shape, what an
image costs, which policies have a meaning, and whether the weights fit into this machine's memory.
Knows `lookm check`'s answer; nothing about how it is printed but its lines.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from lookm.config import DType
from lookm.device import choose_device, choose_dtype
from lookm.errors import LookmError, PolicyError
from lookm.memory import free_host_bytes
from lookm.models.families import FAMILIES, Family
from lookm.models.generation import generation_defaults
from lookm.models.judged import judged_processor
from lookm.models.loading import find_headers, served_name, supported_config
from lookm.models.processor import Processor
from lookm.policy import PRESETS, resolve
from lookm.sizing import kept_rows
from server.openai.tools.template_support import tool_support
from server.plan import ModelShape, check_dtype, shape_of
from server.sizes import format_size

#: Width and height of images as people send them.
SIZES = ((336, 336), (672, 672), (1024, 1024), (1920, 1080), (3024, 4032))
PROBE_TOKENS = 256
SPARE = 1.1  # of the weights' size: what a model takes besides


@dataclass(frozen=True, slots=True)
class Card:
    """What a checkpoint is. Tokens of images are None where its processor cannot be loaded."""

    family: str
    model_type: str
    parameters: int
    parameters_are_estimated: bool
    dtype: str
    weight_bytes: int
    context_tokens: int
    layers: int
    windowed_layers: int
    kv_heads: int
    head_dim: int
    kv_bytes_per_token_16_bits: int
    kv_bytes_per_token_8_bits: int
    image_tokens: Mapping[str, int]
    policies: tuple[str, ...]
    refused_policies: tuple[str, ...]
    special: tuple[str, ...]
    tools: str
    sampling: str
    packages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """`works`, or the reason why not; `memory`: what is here. The card, as far as it is known."""

    model: str
    works: bool
    device: str
    memory: str = ""
    reason: str = ""
    card: Card | None = field(default=None)

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def check(model: str, device: str = "auto", dtype: DType = "auto") -> Verdict:
    """Look at everything but the weights' numbers. Never raises for what a checkpoint is."""
    name, place, card = served_name(model), device, None
    try:
        check_dtype(dtype)
        chosen = choose_device(device)
        place = str(chosen)
        checkpoint = find_headers(model)
        processor = judged_processor(checkpoint, name=name)
        config = supported_config(str(checkpoint.folder))
        shape = shape_of(
            config, choose_dtype(dtype, checkpoint.dtype, chosen), checkpoint.num_parameters
        )
        card = _card(
            shape,
            FAMILIES[config.model_type],
            processor,
            str(generation_defaults(checkpoint.generation_config, name)),
            estimated=checkpoint.num_parameters is None,
        )
    except LookmError as error:
        return Verdict(name, False, place, reason=str(error), card=card)
    kind, free_bytes = _memory(chosen)
    memory = f"weights take {format_size(card.weight_bytes)} of {format_size(free_bytes)} {kind}"
    fits = card.weight_bytes * SPARE < free_bytes
    reason = "" if fits else f"it does not fit: {memory}; take a smaller model or a bigger machine"
    return Verdict(name, fits, place, memory, reason, card)


def lines(verdict: Verdict) -> Iterator[str]:
    """What `lookm check` prints."""
    if not verdict.works:
        yield f"{verdict.model} will not work here ({verdict.device}): {verdict.reason}"
    else:
        yield f"{verdict.model} will work here ({verdict.device}): {verdict.memory}"
    if verdict.card is not None:
        yield ""
        for name, text in _rows(verdict.card):
            yield f"  {name:<13}{text}"


def _rows(card: Card) -> Iterator[tuple[str, str]]:
    about = "about " if card.parameters_are_estimated else ""
    yield "family", f"{card.family} ({card.model_type})"
    yield (
        "parameters",
        f"{about}{_short(card.parameters)}, {format_size(card.weight_bytes)} in {card.dtype}",
    )
    yield "context", f"{card.context_tokens:,} tokens"
    heads = f"{card.layers} layers x {card.kv_heads} KV heads x {card.head_dim}"
    windows = f"; {card.windowed_layers} see a window" if card.windowed_layers else ""
    yield "attention", heads + windows
    yield (
        "KV cache",
        f"{format_size(card.kv_bytes_per_token_16_bits)} a token at 16 bits, "
        f"{format_size(card.kv_bytes_per_token_8_bits)} at 8",
    )
    images = ", ".join(f"{size}: {count:,}" for size, count in card.image_tokens.items())
    yield "image tokens", images
    yield "policies", ", ".join(card.policies)
    if card.refused_policies:
        yield "  refused", ", ".join(card.refused_policies)
    yield "tools", card.tools
    yield "sampling", f"{card.sampling} where a request does not say"
    yield "needs", ", ".join(card.packages) or "nothing beyond the base install"
    yield "special", "; ".join(card.special) or "-"


def _card(
    shape: ModelShape, family: Family, processor: Processor, sampling: str, *, estimated: bool
) -> Card:
    allowed, refused = _policies(shape, family)
    support = tool_support(processor)
    wide = replace(shape, dtype=torch.bfloat16)
    without = () if processor.has_template else ("no chat template: chats are refused",)
    return Card(
        family=family.title,
        model_type=family.model_type,
        parameters=shape.num_parameters,
        parameters_are_estimated=estimated,
        dtype=str(shape.dtype).removeprefix("torch."),
        weight_bytes=shape.weight_bytes,
        context_tokens=shape.max_context_tokens,
        layers=shape.num_layers,
        windowed_layers=sum(window is not None for window in shape.windows_L),
        kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        kv_bytes_per_token_16_bits=wide.kv_bytes_per_token,
        kv_bytes_per_token_8_bits=replace(wide, kv_cache_dtype="int8").kv_bytes_per_token,
        image_tokens=_image_tokens(processor),
        policies=allowed,
        refused_policies=refused,
        special=(*family.specials, *without),
        tools=support.dialect.form.name if support.dialect else f"refused: {support.reason}",
        sampling=sampling,
        packages=family.packages,
    )


def _image_tokens(processor: Processor) -> dict[str, int]:
    from PIL import Image

    return {
        f"{width}x{height}": processor.image(
            Image.new("RGB", (width, height)), f"{width}x{height}"
        ).num_tokens
        for width, height in SIZES
    }


def _policies(shape: ModelShape, family: Family) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Which presets have a meaning for a prompt with an image, and which are refused."""
    is_image_T = torch.zeros(PROBE_TOKENS, dtype=torch.bool)
    is_image_T[: PROBE_TOKENS // 2] = True
    causal, windows_L = family.causal(has_images=True), shape.cache.windows_L
    refused = []
    for name in PRESETS:
        try:
            kept_rows(resolve(name), is_image_T, windows_L, causal=causal)
        except PolicyError:
            refused.append(name)
    return tuple(name for name in PRESETS if name not in refused), tuple(refused)


def _memory(device: torch.device) -> tuple[str, int]:
    if device.type == "cuda":
        return f"free on {torch.cuda.get_device_name(device)}", torch.cuda.mem_get_info(device)[0]
    return "free host memory", free_host_bytes()


def _short(number: int) -> str:
    """`7.06 B`, `305 M`, `3.1 M`."""
    size, unit = (number / 1e9, "B") if number >= 1e9 else (number / 1e6, "M")
    return f"{size:.3g} {unit}"
