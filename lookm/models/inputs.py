"""Token rows ready for the text model: a whole prompt's, and one step's, packed from many prompts.

Knows tensors. Shapes: T rows, E hidden size, R rows of positions, V visual rows, F feature levels
(the first merges into the embeddings; the others, deepstack's, are added after the first layers).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F


@dataclass(frozen=True, slots=True, eq=False)
class PackedRows:
    """T rows of one step. `is_visual_T` and `deepstack_FVE` are set together, or not at all."""

    embeds_TE: torch.Tensor
    pos_RT: torch.Tensor
    is_visual_T: torch.Tensor | None = None
    deepstack_FVE: torch.Tensor | None = None

    @staticmethod
    def cat(parts: Sequence["PackedRows"]) -> "PackedRows":
        """The parts one after the other; those without visual rows take part with none."""
        embeds_TE = torch.cat([part.embeds_TE for part in parts])
        pos_RT = torch.cat([part.pos_RT for part in parts], dim=1)
        levels = [part.deepstack_FVE for part in parts if part.deepstack_FVE is not None]
        if not levels:
            return PackedRows(embeds_TE, pos_RT)
        is_visual_T = torch.cat(
            [
                torch.zeros(len(part.embeds_TE), dtype=torch.bool, device=embeds_TE.device)
                if part.is_visual_T is None
                else part.is_visual_T
                for part in parts
            ]
        )
        return PackedRows(embeds_TE, pos_RT, is_visual_T, torch.cat(levels, dim=1))

    def padded(self, num_rows: int) -> "PackedRows":
        """These rows, then rows of zeros at position 0, `num_rows` in all."""
        more = num_rows - len(self.embeds_TE)
        is_visual_T = None if self.is_visual_T is None else F.pad(self.is_visual_T, (0, more))
        return PackedRows(
            F.pad(self.embeds_TE, (0, 0, 0, more)),
            F.pad(self.pos_RT, (0, more)),
            is_visual_T,
            self.deepstack_FVE,
        )


@dataclass(frozen=True, slots=True, eq=False)
class PromptMask:
    """Who sees whom in a prompt that is not causal, bool: in full layers, and in windowed ones."""

    full_TT: torch.Tensor
    windowed_TT: torch.Tensor

    @staticmethod
    def read(mask: Any) -> "PromptMask":
        """From what a language model would be given: one 4-D mask, or one by layer type."""
        by_type = mask if isinstance(mask, dict) else {"full_attention": mask}
        full_TT = _allowed(by_type["full_attention"])
        windowed = by_type.get("sliding_attention")
        return PromptMask(full_TT, full_TT if windowed is None else _allowed(windowed))

    def of(self, window: int | None) -> torch.Tensor:
        """The mask of a layer with this window, None for a full one."""
        return self.full_TT if window is None else self.windowed_TT


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddedPrompt:
    """A prompt ready for the text model.

    `embeds_TE` has image features in place; `pos_RT` are RoPE positions (R = 1, or 3 for M-RoPE);
    `is_image_T` marks image tokens; generated token i sits at position `next_pos + i`; `mask` is
    None where the prompt is causal. Of the first `num_left_out` tokens there are no embeddings.
    """

    embeds_TE: torch.Tensor
    pos_RT: torch.Tensor
    is_image_T: torch.Tensor
    next_pos: int
    deepstack_FVE: torch.Tensor | None = None
    mask: PromptMask | None = None
    num_left_out: int = 0

    def part(self, start: int, end: int) -> PackedRows:
        """Rows `start:end`, with the deepstack features of the image tokens among them."""
        first = self.num_left_out
        assert start >= first, "these rows were known, and not embedded"
        embeds_TE, pos_RT = self.embeds_TE[start - first : end - first], self.pos_RT[:, start:end]
        if self.deepstack_FVE is None:
            return PackedRows(embeds_TE, pos_RT)
        is_visual_T = self.is_image_T[start:end]
        before, within = int(self.is_image_T[:start].sum()), int(is_visual_T.sum())
        if not within:
            return PackedRows(embeds_TE, pos_RT)
        return PackedRows(
            embeds_TE, pos_RT, is_visual_T, self.deepstack_FVE[:, before : before + within]
        )


def _allowed(mask_11TT: torch.Tensor) -> torch.Tensor:
    mask_TT = mask_11TT[0, 0]
    return mask_TT if mask_TT.dtype == torch.bool else mask_TT >= 0
