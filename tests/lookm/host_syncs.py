"""Catches code that would wait for a GPU: what asks the host, seen on a CPU."""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class Asked(TorchDispatchMode):
    """Notes every operation whose result the host reads, or whose input the host makes."""

    HOST = frozenset(
        {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal"}
        | {"lift_fresh", "lift_fresh_copy", "unique_dim", "_unique2"}
    )

    def __init__(self) -> None:
        super().__init__()
        self.questions = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name == "index" and any(
            part is not None and part.dtype == torch.bool for part in args[1]
        )
        if name in self.HOST or masks:
            self.questions.append(str(func))
        return func(*args, **(kwargs or {}))


class AskedByMethod(TorchFunctionMode):
    """The questions that on a CPU are no operation: `tolist` and its like."""

    HOST = frozenset({"tolist", "numpy", "item", "cpu", "__bool__", "__int__", "__float__"})

    def __init__(self) -> None:
        super().__init__()
        self.questions = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self.HOST:
            self.questions.append(func.__name__)
        return func(*args, **(kwargs or {}))


def questions(call: Any) -> Any:
    """What `call` asks of the host, under inference mode."""
    with Asked() as asked, AskedByMethod() as by_method, torch.inference_mode():
        call()
    return asked.questions + by_method.questions
