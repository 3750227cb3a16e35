"""Checkpoints that are known and cannot be served, each refused with what to take instead.

Judged by `config.json` as it stands, before transformers sees it. Knows what repositories are made
of; reads nothing itself.
"""

from collections.abc import Mapping
from typing import Any

from lookm.errors import ModelError
from lookm.models.families import FAMILIES

Config = Mapping[str, Any]

_LLAVA_15 = {4096: "llava-hf/llava-1.5-7b-hf", 5120: "llava-hf/llava-1.5-13b-hf"}
_LLAVA_16 = {
    4096: "llava-hf/llava-v1.6-vicuna-7b-hf",
    5120: "llava-hf/llava-v1.6-vicuna-13b-hf",
    7168: "llava-hf/llava-v1.6-34b-hf",
}
_ONEVISION = {
    896: "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
    3584: "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    8192: "llava-hf/llava-onevision-qwen2-72b-ov-hf",
}


def check_config(name: str, config: Config) -> None:
    """Raises `ModelError` for a kind of checkpoint that cannot be served, and says why."""
    try:
        reason = _own_code(config) or _quantised(config) or _unknown(config)
    except (TypeError, AttributeError):
        reason = "has a config.json with values of another kind than transformers writes"
    if reason is not None:
        raise ModelError(f"{name} {reason}", param="model")


def _own_code(config: Config) -> str | None:
    """Repositories for the code of their authors, of which some have a converted twin."""
    model_type = str(config.get("model_type"))
    made_for = " ".join(map(str, config.get("architectures") or ()))
    if "mobilevlm" in model_type.lower() or "MobileLlama" in made_for:
        return (
            "is MobileVLM, for which transformers has no class, so it cannot be served; a small "
            "model that can is HuggingFaceTB/SmolVLM-Instruct"
        )
    if "mm_vision_tower" in config or "mm_projector_type" in config:
        return (
            "is in the form of LLaVA's own code, with other weight names and no processor: take "
            f"the converted one, {_converted(config, model_type + made_for)}"
        )
    if model_type == "internvl_chat":
        return (
            "is in the form of InternVL's own code: take the converted one, whose name ends in -hf "
            "(such as OpenGVLab/InternVL3-8B-hf)"
        )
    return None


def _converted(config: Config, kind: str) -> str:
    """The twin for transformers of an original LLaVA, by what tells them apart."""
    hidden_size = config.get("hidden_size")
    if "qwen" in kind.lower():
        return _ONEVISION.get(hidden_size or 0, "of llava-hf (llava-onevision-*)")
    if "mistral" in kind.lower():
        return "llava-hf/llava-v1.6-mistral-7b-hf"
    is_next = config.get("image_aspect_ratio") == "anyres"
    twins = _LLAVA_16 if is_next else _LLAVA_15
    return twins.get(hidden_size or 0, "llava-hf/llava-1.5-7b-hf or another of llava-hf")


def _quantised(config: Config) -> str | None:
    for part in (config, config.get("text_config"), config.get("vision_config")):
        if not isinstance(part, Mapping):
            continue
        found = part.get("quantization_config") or part.get("compression_config")
        if found:
            method = found.get("quant_method") if isinstance(found, Mapping) else None
            if isinstance(found, Mapping) and method is None:
                bits = [key for key in ("load_in_4bit", "load_in_8bit") if found.get(key)]
                method = "bitsandbytes" if bits else None
            return (
                f"is quantised ({method or 'by an unnamed method'}), which is not supported: take "
                "the checkpoint it was made from, in bfloat16 or float16"
            )
    return None


def _unknown(config: Config) -> str | None:
    model_type = config.get("model_type")
    if model_type in FAMILIES:
        return None
    if model_type is None:
        return "has a config.json without a model_type: it is not a checkpoint of transformers"
    own = "needs code of its own, never run here" if config.get("auto_map") else "is refused"
    supported = ", ".join(sorted(FAMILIES))
    return f"{own}: model type {model_type!r} is not supported; supported: {supported}"
