"""Whether a checkpoint's weights are those of its model's class: each there, none strange.

transformers fills what is missing with noise and drops what it does not know, and goes on. It is
asked here what it would do, with weights of the right names and shapes that take no memory, so that
nothing is read; and again, of what it did, once it has loaded. Renamed prefixes, tied weights and
buffers are its to know.
"""

from collections.abc import Iterable, Mapping, Sized
from typing import Any

import torch

from lookm.errors import ModelError, in_one_line
from lookm.models.headers import Weight

NUM_NAMED = 3


def check_weights(config: Any, weights: Mapping[str, Weight], path: str) -> None:
    """Raises `ModelError` naming what is missing, strange or of another shape."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    cls = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    left_out = dict.fromkeys(
        ("_move_missing_keys_from_meta_to_device", "_initialize_missing_keys"), _nothing
    )
    # By its own name: transformers knows by it which prefixes are renamed.
    skeleton: Any = type(cls.__name__, (cls,), {"__module__": cls.__module__, **left_out})
    number = torch.zeros((), dtype=torch.bfloat16)
    try:
        model, info = skeleton.from_pretrained(
            None,
            config=config,
            state_dict={name: number.expand(each.shape) for name, each in weights.items()},
            dtype=torch.bfloat16,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ModelError(
            f"{path}: config.json does not describe a model: {in_one_line(error)}", param="model"
        ) from error
    check_loaded(model, info, path)


def check_loaded(model: Any, info: Mapping[str, Any], path: str) -> None:
    """The same, of what `from_pretrained` reports. Raises `ModelError`."""
    shapes = sorted(info["mismatched_keys"])
    if shapes:
        name, there, expected = shapes[0]
        raise ModelError(
            f"{path}: {_count(shapes)} of another shape than config.json says, such as {name}: "
            f"{list(there)} in the file, {list(expected)} by the config. One of the two "
            "is of another model",
            param="model",
        )
    modules = {name for name, _ in model.named_modules()}
    strange = sorted(each for each in info["unexpected_keys"] if _within(each, modules))
    missing = sorted(info["missing_keys"])
    if missing:
        others = sorted(info["unexpected_keys"])
        instead = f"; it holds {_named(others)}, which the model does not know" if others else ""
        raise ModelError(
            f"{path} lacks {_count(missing)} of {type(model).__name__}: "
            f"{_named(missing)}{instead}. Take a whole checkpoint of this class",
            param="model",
        )
    if strange:
        raise ModelError(
            f"{path} holds {_count(strange)} that its config.json leaves no place for: "
            f"{_named(strange)}. One of the two is of another model",
            param="model",
        )


def _within(name: str, modules: set[str]) -> bool:
    """Whether a weight is of the model itself: of a module that it has, or of one more layer.

    Whole parts beside it (heads for other tasks) are left out by transformers, and here.
    """
    parts = name.split(".")
    if ".".join(parts[:-1]) in modules:
        return True
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return any(".".join(parts[:i]) in modules for i in numbers)


def _count(weights: Sized) -> str:
    return "1 weight" if len(weights) == 1 else f"{len(weights)} weights"


def _named(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - NUM_NAMED
    return ", ".join(names[:NUM_NAMED]) + (f" and {more} more" if more > 0 else "")


def _nothing(*_: Any, **__: Any) -> None:
    """In the place of what prepares weights that nobody will read."""
