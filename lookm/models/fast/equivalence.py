"""How a module's replacement is tried out: on random rows, against the module itself.

A replacement is taken only where it computes what the module does, up to rounding. Knows modules'
calls, not what is in them.
"""

from typing import Any

import torch
from torch import nn

from lookm.models.attention_interface import LayerRows

TRIAL_ROWS = 7


def noise(num_rows: int, size: int, like: torch.Tensor) -> torch.Tensor:
    """The same normal numbers every time, `[num_rows, size]`, of the type and device of `like`."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_rows, size, generator=generator).to(like.device, like.dtype)


def close(expected: torch.Tensor, found: torch.Tensor) -> bool:
    """Equal up to rounding, relative to the largest number of a row."""
    if expected.shape != found.shape:
        return False
    tolerance = 1e-4 if expected.dtype == torch.float32 else 2**-5
    error = (found.float() - expected.float()).abs().amax(dim=-1)
    return bool((error <= tolerance * expected.float().abs().amax(dim=-1)).all())


def same_in_a_layer(module: Any, replacement: nn.Module, first: nn.Linear) -> bool:
    """Whether two attentions, or two layers, hand the same to ours and give the same.

    `first` is the product that takes their input, and gives what is rotated.
    """
    x = noise(TRIAL_ROWS, first.in_features, first.weight)[None]
    size: int = getattr(module, "self_attn", module).head_dim
    angle_1TD = noise(TRIAL_ROWS, size // 2, first.weight).float().repeat(1, 2)[None]
    position = (angle_1TD.cos().to(x.dtype), angle_1TD.sin().to(x.dtype))
    seen: list[Seen] = []
    for each in (module, replacement):
        context = Seen()
        try:
            out = each(hidden_states=x, position_embeddings=position, attention_mask=None,
                       kv_context=context)  # fmt: skip
        except (TypeError, ValueError, RuntimeError, IndexError):  # takes other arguments
            return False
        context.tensors.append(out[0] if isinstance(out, tuple) else out)
        seen.append(context)
    theirs, ours = seen
    return theirs.facts == ours.facts and all(
        close(a, b) for a, b in zip(theirs.tensors, ours.tensors, strict=True)
    )


class Seen:
    """Notes what a module hands to our attention (`interface.StepContext`)."""

    def __init__(self) -> None:
        self.tensors: list[torch.Tensor] = []
        self.facts: list[Any] = []

    def attend(self, rows: LayerRows) -> torch.Tensor:
        """Something that depends on all three, in the place of attention."""
        self.tensors += [rows.q_HTD, rows.k_KTD, rows.v_KTD]
        self.facts.append((rows.layer, rows.scale, rows.window))
        group = rows.q_HTD.shape[0] // rows.k_KTD.shape[0]
        both_HTD = (rows.k_KTD + rows.v_KTD).repeat_interleave(group, 0)
        return (rows.q_HTD + both_HTD).transpose(0, 1)
