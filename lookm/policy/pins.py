"""Which candidates outrank the others, whatever their score.

Knows token positions and which of them are image tokens; knows no scores. Candidates are the tokens
before the recent window. A tier is an integer per token, 0 first; within a tier the score decides.

    0 protected text | 1 .. sinks: sinks, first token first | then: window | prior text | the rest
"""

from dataclasses import dataclass

import torch

from lookm.types import TextMode


@dataclass(frozen=True, slots=True)
class Pins:
    """What ranks first. `sinks` and `window` count tokens at the two ends of the prompt.

    `text` is one of
    - `"protect"`: every candidate text token is kept, even where that exceeds the budget, and
      images fill what is left of it (what the authors' released code does);
    - `"prior"`: text outranks images, within the exact budget (LOOK-M, equation 5);
    - `"none"`: text is scored like everything else.
    """

    text: TextMode = "none"
    sinks: int = 0
    window: int = 0


def tiers(pins: Pins, is_image_T: torch.Tensor) -> torch.Tensor:
    """`tier_T` int8, on the device of `is_image_T`."""
    window, prior, rest = range(pins.sinks + 1, pins.sinks + 4)
    tier_T = torch.full_like(is_image_T, rest, dtype=torch.int8)
    if pins.text == "prior":
        tier_T.masked_fill_(~is_image_T, prior)
    if pins.window:
        tier_T[-pins.window :] = window
    for position in range(min(pins.sinks, len(tier_T))):
        tier_T[position] = position + 1
    if pins.text == "protect":
        tier_T.masked_fill_(~is_image_T, 0)
    return tier_T


def num_protected(pins: Pins, is_image_T: torch.Tensor, recent: int) -> int:
    """How many candidates are kept whatever the budget: `"protect"`'s text."""
    if pins.text != "protect":
        return 0
    num_candidates = is_image_T.shape[0] - recent
    return num_candidates - int(is_image_T[:num_candidates].sum())
