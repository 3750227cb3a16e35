"""From a model's name to its weights and processor on disk or in the hub's cache."""

import contextlib
import importlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lookm import demo
from lookm.errors import ModelError
from lookm.models.families import Family, family_of

# The wheels of PyPI are built for CUDA and do not load beside a CPU build of torch.
_INSTALL = {
    "torchvision": "pip install torchvision, or beside a CPU-only torch: pip install torchvision "
    "--index-url https://download.pytorch.org/whl/cpu"
}


def resolve_path(model: str) -> str:
    """The directory or hub name behind `model`; `llava-demo` is the bundled checkpoint."""
    if model == demo.NAME:
        return str(demo.checkpoint_path())
    path = Path(model).expanduser()
    if path.is_dir():
        return str(path)
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise ModelError(
            f"no model directory at {model!r}; give a directory, a hub name such as "
            f"'llava-hf/llava-1.5-7b-hf', or {demo.NAME!r}",
            param="model",
        )
    return model


def served_name(model: str) -> str:
    """The name clients use: the hub name, or the last part of a path."""
    return Path(model).expanduser().resolve().name if Path(model).is_dir() else model


def load_config(path: str) -> Any:
    """The checkpoint's transformers config. Raises `ModelError` where there is none."""
    from transformers import AutoConfig

    with _quiet(), _as_model_error(path):
        return AutoConfig.from_pretrained(path)


def load_model(path: str, *, dtype: torch.dtype, device: torch.device) -> tuple[Any, Family]:
    """Weights in eval mode, text attention routed to our step context, vision on SDPA."""
    from transformers import AutoModelForImageTextToText

    config = load_config(path)
    family = family_of(config)
    if getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None:
        raise ModelError(
            f"{path!r} softcaps its attention logits (Gemma 2), which is not supported; "
            "PaliGemma 1 and Gemma 3 are",
            param="model",
        )
    with _quiet(), _as_model_error(path):
        model = AutoModelForImageTextToText.from_pretrained(
            path, dtype=dtype, attn_implementation="sdpa"
        )
    return model.to(device).eval(), family


def load_processor(path: str, family: Family) -> Any:
    """The checkpoint's transformers processor (tokenizer, image processor, chat template)."""
    from transformers import AutoProcessor

    for package in family.packages:
        require(package, family)
    with _quiet(), _as_model_error(path):
        try:
            return AutoProcessor.from_pretrained(path)
        except ImportError as error:  # a LLaVA checkpoint may come with Pixtral's processor
            if "torchvision" in str(error).lower():
                require("torchvision", family)
            raise


def require(package: str, family: Family) -> None:
    """Raises `ModelError` with the command to run unless `package` is there and works."""
    try:
        importlib.import_module(package)
    except (ImportError, RuntimeError, OSError) as error:
        command = _INSTALL.get(package, f"pip install {package}")
        state = "is not installed" if isinstance(error, ModuleNotFoundError) else "does not load"
        raise ModelError(
            f"the processor of {family.title} needs {package}, which {state} here: {command}",
            param="model",
        ) from error


@contextlib.contextmanager
def _as_model_error(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise ModelError(f"cannot load {path!r}: {first_line}", param="model") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, no advice about fast processors: what was decided is in our own log."""
    from transformers.utils import logging as hf_logging

    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity(logging.ERROR)
    hf_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()
