"""How this engine gets between transformers and its attention: the function every layer calls.

transformers' attention registry runs `attend` in place of SDPA, and carries any extra keyword of
the forward call to it; that is how a step's context arrives. Knows no family and no page.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from lookm.errors import ModelError

ATTENTION = "lookm"


@dataclass(frozen=True, slots=True, eq=False)
class LayerRows:
    """One layer's queries, keys and values for some of the packed rows of a step.

    `window`: a token sees itself and the `window - 1` before it; None where it sees all.
    """

    layer: int
    q_HTD: torch.Tensor
    k_KTD: torch.Tensor
    v_KTD: torch.Tensor
    scale: float
    window: int | None

    def part(self, start: int, end: int) -> "LayerRows":
        """The rows from `start` to before `end`."""
        q_HTD, k_KTD, v_KTD = (each[:, start:end] for each in (self.q_HTD, self.k_KTD, self.v_KTD))
        return replace(self, q_HTD=q_HTD, k_KTD=k_KTD, v_KTD=v_KTD)


class StepContext(Protocol):
    """What a forward pass asks at each layer. Implemented by the runner, one per step."""

    def attend(self, rows: LayerRows) -> torch.Tensor:
        """Store k and v as the step says, and return the attention output `[T, H, D]`."""
        ...


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    kv_context: StepContext | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: `[1, H, T, D]` in, `[1, T, H, D]` out."""
    assert kv_context is not None, "this model object belongs to an engine; do not call it directly"
    assert attention_mask is None, "the step context is the mask"
    if softcap is not None or s_aux is not None:  # seen by the probe, at start
        what = "softcapped attention logits" if s_aux is None else "attention sinks"
        raise ModelError(f"this model's attention has {what}, which is not supported")
    # A step is one packed row: the batch dimension is always 1.
    rows = LayerRows(module.layer_idx, query[0], key[0], value[0], scaling, sliding_window)
    return kv_context.attend(rows)[None], None


@dataclass(frozen=True, slots=True)
class PaddedContext:
    """A step whose rows were padded: `context` sees the first `num_rows`, the others get zeros."""

    context: StepContext
    num_rows: int

    def attend(self, rows: LayerRows) -> torch.Tensor:
        """`context.attend` of the rows there are."""
        out_THD = self.context.attend(rows.part(0, self.num_rows))
        return F.pad(out_THD, (0, 0, 0, 0, 0, rows.q_HTD.shape[1] - self.num_rows))


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The shape of a text model's attention. `windows_L`: None where a layer sees all tokens."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_context_tokens: int
    windows_L: tuple[int | None, ...]


@dataclass(slots=True)
class Probe:
    """Runs one token to see how a text model attends: what it does, not what its config says."""

    windows: list[int | None] = field(default_factory=list)
    shapes: set[tuple[int, int, int]] = field(default_factory=set)

    def attend(self, rows: LayerRows) -> torch.Tensor:
        """A token that sees itself alone gets its own value."""
        k_KTD, v_KTD = rows.k_KTD, rows.v_KTD
        num_heads, num_kv_heads = rows.q_HTD.shape[0], k_KTD.shape[0]
        if rows.layer != len(self.windows) or k_KTD.shape != v_KTD.shape:
            raise ModelError(
                f"layer {rows.layer} of this model does not cache plain keys and values"
            )
        if rows.window is not None and rows.window < 1:
            raise ModelError(
                f"layer {rows.layer} of this model sees a window of {rows.window} tokens: mend "
                "sliding_window in config.json (null where there is none)",
                param="model",
            )
        self.windows.append(rows.window)
        self.shapes.add((num_heads, num_kv_heads, k_KTD.shape[2]))
        return v_KTD.repeat_interleave(num_heads // num_kv_heads, dim=0).transpose(0, 1)

    def shape(self, num_layers: int) -> tuple[int, int, int]:
        """Query heads, KV heads and head size. Raises `ModelError` unless all layers share them."""
        if len(self.windows) != num_layers or len(self.shapes) != 1:
            raise ModelError(
                f"{len(self.windows)} of this model's {num_layers} layers cache keys and values, "
                f"in {len(self.shapes)} shapes; supported are models in which all do, in one"
            )
        return next(iter(self.shapes))
