"""A model without its weights' numbers, that can be asked what it makes of an input.

Its weights are on the meta device, and so is all that is computed from them: a shape, no numbers.
What is computed from the input alone keeps its numbers, because towers decide by it how to go on
(sizes and grids of an image, tiles that are empty). Knows torch; no family.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

META = torch.device("meta")


def weightless(config: Any) -> Any:
    """The config's model, in milliseconds."""
    from transformers import AutoModelForImageTextToText

    with META:
        return AutoModelForImageTextToText.from_config(config).eval()


class InputsKeepNumbers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Where an operation takes tensors with and without numbers, its result has none; moving
    integers to where the weights are leaves them as they are."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.ops.aten._to_copy.default and not _has_shape_alone(args):
            if kwargs.get("device") == META and not args[0].is_floating_point():
                kwargs["device"] = args[0].device
        elif _has_shape_alone([*args, *kwargs.values()]):
            args, kwargs = _shapes(args), {name: _shapes(each) for name, each in kwargs.items()}
        return func(*args, **kwargs)


def _has_shape_alone(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.device == META
    return isinstance(value, list | tuple) and any(map(_has_shape_alone, value))


def _shapes(value: Any) -> Any:
    """`value`, each tensor in it without its numbers."""
    if isinstance(value, torch.Tensor):
        return value if value.device == META else torch.empty_like(value, device=META)
    if isinstance(value, list | tuple):
        return type(value)(map(_shapes, value))
    return value
