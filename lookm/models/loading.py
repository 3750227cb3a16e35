"""From a model's name to its weights and processor on disk or in the hub's cache."""

import contextlib
import importlib
import importlib.util
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lookm import demo
from lookm.config import Quantization
from lookm.errors import ModelError, in_one_line
from lookm.models import hub
from lookm.models.checkpoint import (
    IMAGE_PROCESSORS,
    Checkpoint,
    open_checkpoint,
    open_config,
    read_config,
    read_weights,
    weight_files,
)
from lookm.models.families import FAMILIES, Family, family_of
from lookm.models.headers import Weight
from lookm.models.quantized import quantize_linears
from lookm.models.weights import check_loaded, check_weights

_TORCHVISION = "torchvision"

# The wheels of PyPI are built for CUDA and do not load beside a CPU build of torch.
_INSTALL = {
    _TORCHVISION: "pip install torchvision, or beside a CPU-only torch: pip install torchvision "
    "--index-url https://download.pytorch.org/whl/cpu"
}

logger = logging.getLogger(__name__)


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


def fetch(model: str) -> Checkpoint:
    """The checkpoint, as the hub has it now, judged by its files (`checkpoint`). A hub name is
    downloaded where it is not in the cache. Raises `ModelError`: before a weight is read, and
    where small files tell, before one is downloaded."""
    if (folder := _local(model)) is not None:
        return _opened(folder, model)
    try:
        small = hub.download_small(model)
        _opened(small, model, with_weights=False)
        return _opened(hub.download_weights(model, weight_files(small)), model)
    except ModelError as error:
        folder = hub.cached(model)
        if folder is None:
            raise
        try:
            checkpoint = _opened(folder, model)
        except ModelError:
            raise error from None
        logger.warning("the cached files are used: %s", error)
        return checkpoint


def find(model: str) -> Checkpoint:
    """As `fetch`, but for what the cache has whole the hub is not asked. What its processor needs
    is imported. Raises `ModelError`."""
    if (folder := _local(model)) is not None:
        return _imported(folder, model)
    if (folder := hub.cached(model)) is not None:
        with contextlib.suppress(ModelError):  # a download that was cut
            return _imported(folder, model)
    return fetch(model)


def find_config(model: str) -> Checkpoint:
    """What a checkpoint's config alone tells; nothing else is looked at. Raises `ModelError`."""
    return open_config(_local(model) or hub.download_config(model), model)


def find_headers(model: str) -> Checkpoint:
    """A checkpoint with the names and shapes of its weights, of which nothing is downloaded: a hub
    name's are asked for (None where the hub does not say). Raises `ModelError`."""
    if (folder := _local(model)) is not None:
        return _opened(folder, model)
    small = _opened(hub.download_small(model), model, with_weights=False)
    with contextlib.suppress(ModelError):
        return _opened(small.folder, model)  # they are in the cache
    return replace(small, weights=hub.remote_weights(model))


def _local(model: str) -> Path | None:
    """The directory, or None for a hub name. Raises `ModelError`."""
    path = Path(resolve_path(model))
    return path if path.is_dir() else None


def _imported(folder: Path, model: str) -> Checkpoint:
    """As `_opened`, and what its processor needs works. Raises `ModelError`."""
    family = FAMILIES[read_config(folder, model)["model_type"]]
    for package in family.packages:
        require(package, family)
    return _opened(folder, model)


def _opened(folder: Path, model: str, *, with_weights: bool = True) -> Checkpoint:
    """Judged, and what it needs is installed. Raises `ModelError`."""
    family = FAMILIES[read_config(folder, model)["model_type"]]
    for package in family.packages:
        if sys.modules.get(package) is None and importlib.util.find_spec(package) is None:
            raise _needed(package, family)
    return open_checkpoint(folder, model, with_weights=with_weights)


def served_name(model: str) -> str:
    """The name clients use: the hub name, or the last part of a path."""
    return Path(model).expanduser().resolve().name if Path(model).is_dir() else model


def load_config(path: str) -> Any:
    """The checkpoint's transformers config. Raises `ModelError` where there is none."""
    hide_broken(_TORCHVISION)
    from transformers import AutoConfig

    with _quiet(), _as_model_error(f"{path}/config.json"):
        return AutoConfig.from_pretrained(path)


def load_model(
    path: str, *, dtype: torch.dtype, device: torch.device, quantize: Quantization = "none"
) -> tuple[Any, Family]:
    """Weights in eval mode, text attention routed to our step context, vision on SDPA.

    Every weight of the model is one of the checkpoint's, or tied to one. Quantised on the host: a
    device never holds more than what stays. Raises `ModelError`.
    """
    config = supported_config(path)
    judge_weights(config, read_weights(Path(path), path), path)
    family = family_of(config)
    from transformers import AutoModelForImageTextToText

    with _quiet(), _as_model_error(path):
        model, info = AutoModelForImageTextToText.from_pretrained(
            path, dtype=dtype, attn_implementation="sdpa", output_loading_info=True
        )
    check_loaded(model, info, path)
    if quantize == "int8":
        quantize_linears(getattr(model.model, family.text_model))
    return model.to(device).eval(), family


def supported_config(path: str) -> Any:
    """The config of a model that can be served. Raises `ModelError`."""
    config = load_config(path)
    family_of(config)
    if getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None:
        raise ModelError(
            f"{path!r} softcaps its attention logits (Gemma 2), which is not supported; "
            "PaliGemma 1 and Gemma 3 are",
            param="model",
        )
    return config


def judge_weights(config: Any, weights: Mapping[str, Weight] | None, path: str) -> None:
    """Raises `ModelError` unless the weights, where names are known, are all that the config's
    model has. None is read."""
    if weights is not None:
        with _quiet(), _as_model_error(path):
            check_weights(config, weights, path)


def load_processor(path: str, family: Family) -> Any:
    """The checkpoint's transformers processor (tokenizer, image processor, chat template)."""
    hide_broken(_TORCHVISION)
    from transformers import AutoProcessor, AutoTokenizer

    for package in family.packages:
        require(package, family)
    with _quiet():
        try:
            processor = AutoProcessor.from_pretrained(path)
        except Exception as error:
            # A LLaVA checkpoint may come with Pixtral's processor.
            if isinstance(error, ImportError) and _TORCHVISION in str(error).lower():
                require(_TORCHVISION, family)
            with _as_model_error(
                f"the tokenizer in {path} (tokenizer.json, tokenizer_config.json)"
            ):
                AutoTokenizer.from_pretrained(path)
            with _as_model_error(f"{path}/{_processor_file(path)}"):
                raise
    if not hasattr(processor, "image_processor"):
        raise ModelError(
            f"{path} names no processor of images and text that transformers has: look at "
            "processor_class in processor_config.json or tokenizer_config.json",
            param="model",
        )
    return processor


def _processor_file(path: str) -> str:
    return next(each for each in IMAGE_PROCESSORS if Path(path, each).is_file())


def hide_broken(package: str) -> None:
    """Let a package that is installed and does not load count as not installed.

    transformers looks only whether it is there, and then imports it for models that can do without.
    """
    if package in sys.modules or importlib.util.find_spec(package) is None:
        return
    try:
        importlib.import_module(package)
    except Exception as error:  # noqa: BLE001 - whatever its start raises
        for name in [each for each in sys.modules if each.split(".")[0] == package]:
            del sys.modules[name]
        sys.modules[package] = None  # type: ignore[assignment]  # importing it says: not found
        logger.warning("%s is installed but does not load: %s", package, str(error).split("\n")[0])


def require(package: str, family: Family) -> None:
    """Raises `ModelError` with the command to run unless `package` is there and works."""
    hide_broken(package)
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise _needed(package, family) from error


def _needed(package: str, family: Family) -> ModelError:
    state = "does not load" if package in sys.modules else "is not installed"
    command = _INSTALL.get(package, f"pip install {package}")
    return ModelError(
        f"the processor of {family.title} needs {package}, which {state} here: {command}",
        param="model",
    )


@contextlib.contextmanager
def _as_model_error(what: str) -> Iterator[None]:
    """Whatever loading `what` raises, as a `ModelError` that names it."""
    try:
        yield
    except (ModelError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        # A config has a hundred fields: whatever reading them raises, a worker that is started
        # again would raise it again. Memory may be there then.
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise
        raise ModelError(f"cannot load {what}: {in_one_line(error)}", param="model") from error


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
