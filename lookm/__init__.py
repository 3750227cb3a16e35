"""Multi-image chats with a compressed KV cache, chosen per request (LOOK-M, arXiv 2406.18139).

Reading order: `types` (what goes in and comes out), `engine` (the whole loop on one screen),
`scheduler` and `runner` (who runs, and how), `look` (where a prompt is compressed), then `policy`
(what to keep), `cache` (where it lives), `attention` (how it is read) and `models` (transformers).

    import lookm

    kept = lookm.compress(query, key, value, is_image, "look-m@0.2")     # one layer, plain tensors

    with lookm.compressing(model, "look-m@0.2", is_image) as cache:      # a transformers model
        model.generate(**inputs, past_key_values=cache)

    lookm.show(answer, [image], path="kept.png")     # what was kept of a prompt, as a picture

    engine = lookm.Engine.from_config(lookm.EngineConfig(model="llava-demo"))
    for event in engine.generate([request]):
        print(event.text, end="")

Importing the package loads nothing heavy: torch and transformers come with the first name that
needs them.
"""

from typing import TYPE_CHECKING, Any

from lookm.config import EngineConfig, EnginePlan
from lookm.errors import LookmError, PolicyError, RequestError
from lookm.types import (
    CachePolicy,
    CacheReport,
    EngineStats,
    ImageInput,
    ModelInfo,
    Request,
    Sampling,
    TokenEvent,
)

if TYPE_CHECKING:
    from lookm import positions
    from lookm.compressed_generate import compressing
    from lookm.engine import Engine
    from lookm.look import compress
    from lookm.models.processor import Processor
    from lookm.picture import show

__version__ = "0.2.0"

__all__ = [
    "CachePolicy",
    "CacheReport",
    "Engine",
    "EngineConfig",
    "EnginePlan",
    "EngineStats",
    "ImageInput",
    "LookmError",
    "ModelInfo",
    "PolicyError",
    "Processor",
    "Request",
    "RequestError",
    "Sampling",
    "TokenEvent",
    "compress",
    "compressing",
    "positions",
    "show",
]

_LAZY = {
    "Engine": "lookm.engine",
    "Processor": "lookm.models.processor",
    "compress": "lookm.look",
    "compressing": "lookm.compressed_generate",
    "positions": "lookm",
    "show": "lookm.picture",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        if _LAZY[name] == "lookm":  # a module of this package
            return import_module(f"lookm.{name}")
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'lookm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
