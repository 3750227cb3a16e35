"""The optimiser and its clock. Knows parameters and minutes, nothing of tasks or images."""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch

_NOT_MATRICES = ("embed", "lm_head", "head.")


class Optimizer:
    """Muon for the matrices, AdamW for the rest; the learning rate is a trapezoid in time."""

    def __init__(
        self, named: Iterable[tuple[str, torch.nn.Parameter]], peak_rate: float, slow: str = "?"
    ) -> None:
        """`slow` is a part of parameter names; those learn at half the rate."""
        matrices: dict[bool, list[torch.nn.Parameter]] = {False: [], True: []}
        rest: dict[bool, list[torch.nn.Parameter]] = {False: [], True: []}
        for name, parameter in named:
            flat = parameter.ndim != 2 or any(word in name for word in _NOT_MATRICES)
            (rest if flat else matrices)[slow in name].append(parameter)
        groups = [
            [{"params": kind[late], "share": 0.5 if late else 1.0} for late in kind if kind[late]]
            for kind in (matrices, rest)
        ]
        self.peak_rate = peak_rate
        self.parts: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(
                groups[0], lr=peak_rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(groups[1], lr=peak_rate, weight_decay=0.0, betas=(0.9, 0.98)),
        )
        self._parameters = [p for kind in (matrices, rest) for some in kind.values() for p in some]

    def step(self, share_done: float) -> None:
        """One update at the rate that belongs to this share (0 to 1) of the time."""
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = self.peak_rate * group["share"] * trapezoid(share_done)
            part.step()
            part.zero_grad(set_to_none=True)


def trapezoid(share_done: float, rise: float = 0.02, fall: float = 0.3) -> float:
    """1 in the middle, a short linear rise at the start, a long linear fall to 2 % at the end."""
    return max(0.02, min(1.0, (share_done + 1e-3) / rise, (1.0 - share_done) / fall))


class Clock:
    """How much of a wall-clock budget is used; `used_s` continues a resumed run."""

    def __init__(self, minutes: float, used_s: float = 0.0) -> None:
        self.budget_s = minutes * 60.0
        self._start_s = time.monotonic() - used_s

    @property
    def used_s(self) -> float:
        """Seconds since the start, over all resumed runs."""
        return time.monotonic() - self._start_s

    @property
    def share_done(self) -> float:
        """0 at the start, 1 when the time is up."""
        return min(1.0, self.used_s / self.budget_s)
