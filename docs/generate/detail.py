"""`docs/detail.md`: what `detail` and `max_tokens_per_image` do in each family, from its ladder."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from docs.generate.marked import between
from lookm.errors import RequestError
from lookm.models.detail import Asked, Detail, Ladder, Level, choose
from lookm.models.families import FAMILIES

PATH = Path(__file__).parents[1] / "detail.md"
PAGE = (1200, 1600)  # pixels: width and height
BUDGETS = (1024, 256)
SIDE_OF_TILES = 384
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def _of(processor: Any, **image_settings: Any) -> Any:
    processor.image_processor = SimpleNamespace(**image_settings)
    return processor


def _processor(**settings: Any) -> Any:
    return SimpleNamespace(**settings)


def _qwen(patch: int, least: int, most: int) -> Any:
    size = {"shortest_edge": least, "longest_edge": most}
    return _of(_processor(), patch_size=patch, merge_size=2, size=size)


def _native(patch: int, merge: int, edge: int) -> Any:
    processor = _processor(patch_size=patch, spatial_merge_size=merge)
    return _of(processor, size={"longest_edge": edge})


def _split(tile: int, num_tokens: int) -> Any:
    size, most = {"longest_edge": 4 * tile}, {"longest_edge": tile}
    processor = _processor(image_seq_len=num_tokens)
    return _of(processor, size=size, max_image_size=most, do_image_splitting=True)


def _internvl() -> Any:
    size = {"height": 448, "width": 448}
    patches = {"min_patches": 1, "max_patches": 12, "crop_to_patches": True}
    return _of(_processor(image_seq_length=256), size=size, **patches)


def _gemma() -> Any:
    names = {"do": False, "min_crop_size": 256, "max_num_crops": 4, "min_ratio_to_activate": 1.2}
    scan = {f"pan_and_scan_{name}": value for name, value in names.items() if name != "do"}
    size = {"height": 896, "width": 896}
    return _of(_processor(image_seq_length=256), size=size, do_pan_and_scan=names["do"], **scan)


def _next() -> Any:
    from transformers import LlavaNextProcessor

    processor = LlavaNextProcessor.__new__(LlavaNextProcessor)
    processor.patch_size, processor.num_additional_image_tokens = 14, 1
    processor.vision_feature_select_strategy = "default"
    return _of(processor, size={"shortest_edge": 336}, image_grid_pinpoints=PINPOINTS)


def _onevision() -> Any:
    from transformers.models.llava_onevision.processing_llava_onevision import (
        LlavaOnevisionProcessor,
    )

    processor = LlavaOnevisionProcessor.__new__(LlavaOnevisionProcessor)
    processor.num_image_tokens, processor.vision_aspect_ratio = 729, "anyres_max_9"
    processor.vision_feature_select_strategy = "full"
    sides = [SIDE_OF_TILES * n for n in range(1, 7)]
    pinpoints = [[height, width] for height in sides for width in sides]
    size = {"height": SIDE_OF_TILES, "width": SIDE_OF_TILES}
    return _of(processor, size=size, image_grid_pinpoints=pinpoints)


#: Checkpoints with the settings they were published with: family, processor, tokens of all images.
PUBLISHED: Mapping[str, tuple[str, Callable[[], Any], int]] = {
    "LLaVA-1.5": ("llava", lambda: _of(_processor()), 576),
    "Pixtral 12B": ("llava", lambda: _native(16, 1, 1024), 0),
    "LLaVA-v1.6": ("llava_next", _next, 0),
    "LLaVA-OneVision, alone": ("llava_onevision", _onevision, 0),
    "Qwen2.5-VL": ("qwen2_5_vl", lambda: _qwen(14, 4 * 28**2, 16384 * 28**2), 0),
    "Qwen3-VL": ("qwen3_vl", lambda: _qwen(16, 64 * 32**2, 16384 * 32**2), 0),
    "InternVL3": ("internvl", _internvl, 0),
    "Idefics3 8B": ("idefics3", lambda: _split(364, 169), 0),
    "SmolVLM 256M": ("smolvlm", lambda: _split(512, 64), 0),
    "Gemma 3": ("gemma3", _gemma, 0),
    "Mistral Small 3.1": ("mistral3", lambda: _native(14, 2, 1540), 0),
    "PaliGemma, 224": ("paligemma", lambda: _of(_processor()), 256),
}


def asked(checkpoint: str, size: tuple[int, int] = PAGE) -> tuple[Ladder, Asked]:
    """The ladder of a published checkpoint, and a picture for it."""
    model_type, make, small_tokens = PUBLISHED[checkpoint]
    return FAMILIES[model_type].ladder, Asked(size, make(), {}, small_tokens)


def tokens(checkpoint: str, detail: Detail) -> int | None:
    """What a page takes; None where its budget is refused."""
    ladder, picture = asked(checkpoint)
    try:
        return choose(ladder.steps(picture), detail).num_tokens
    except RequestError:
        return None


def families_table() -> str:
    """In words, what each family does."""
    lines = ["| Family | `low` | `high` | `max_tokens_per_image` |", "|---|---|---|---|"]
    for family in FAMILIES.values():
        ladder = family.ladder
        lines.append(f"| {family.title} | {ladder.low} | {ladder.high} | {ladder.budget} |")
    return "\n".join(lines)


def tokens_table() -> str:
    """In numbers, what a page costs in each checkpoint."""
    levels: tuple[Level, ...] = ("low", "auto", "high")
    budgets = " | ".join(f"at most {budget:,}" for budget in BUDGETS)
    lines = [f"| {PAGE[0]:,} x {PAGE[1]:,} pixels | `low` | `auto` | `high` | {budgets} |"]
    lines.append("|---|" + "---|" * (len(levels) + len(BUDGETS)))
    for checkpoint in PUBLISHED:
        details = [*map(Detail, levels), *(Detail("auto", budget) for budget in BUDGETS)]
        found = [tokens(checkpoint, detail) for detail in details]
        cells = ["refused" if each is None else f"{each:,}" for each in found]
        lines.append(f"| {checkpoint} | {' | '.join(cells)} |")
    return "\n".join(lines)


def page(written: str) -> str:
    """The document with its tables as the ladders have them."""
    return between(between(written, "families", families_table()), "tokens", tokens_table())


def write() -> None:
    """Write the tables again."""
    PATH.write_text(page(PATH.read_text(encoding="utf-8")), encoding="utf-8")
