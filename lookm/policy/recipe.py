"""A policy as parts: a `Preset` is the parts of a named policy, a `Recipe` those of one request.

Knows which parts there are. Knows no tensors, and no names: those are in `presets`.
"""

from dataclasses import dataclass

from lookm.policy.budgets import BudgetRule, split
from lookm.policy.depth import DepthRule
from lookm.policy.merges import MergeRule
from lookm.policy.pins import Pins
from lookm.policy.scores import Score
from lookm.types import CachePolicy, Needs

_NO_NEEDS, _NO_PINS = Needs(), Pins()


@dataclass(frozen=True, slots=True)
class Preset:
    """The parts of a policy. `score` is None where everything is kept.

    `needs` is what must be known of the attention for `score` and `depth`; `depth` spreads the
    budget over the layers, evenly where it is None; `recent` is the share of recent tokens where
    the request names none. `about_images` presets leave prompts without images alone, as those
    whose pins prefer text do.
    """

    score: Score | None
    needs: Needs = _NO_NEEDS
    budget: BudgetRule = split
    pins: Pins = _NO_PINS
    merge: MergeRule | None = None
    depth: DepthRule | None = None
    recent: float = 0.5
    about_images: bool = False

    @property
    def modality_aware(self) -> bool:
        """Whether text and images are treated differently."""
        return self.about_images or self.pins.text != "none"


@dataclass(frozen=True, slots=True)
class Recipe:
    """A validated policy and its parts. Made by `presets.resolve`.

    `preset` is that of the policy's method, with the pins and the merge that the policy names.
    """

    policy: CachePolicy
    preset: Preset
