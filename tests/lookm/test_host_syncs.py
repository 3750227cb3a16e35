"""A prefill that looks queues a layer's work and never waits for it: the device stays busy."""

from typing import Any

import pytest
import torch

from lookm.attention import REFERENCE
from lookm.look import PromptLook
from lookm.policy import PromptPolicy, parse, resolve
from tests.lookm.host_syncs import questions

IS_IMAGE = torch.tensor([False] + [True] * 40 + [False] * 9)


def layer(policy: Any, num_layers: int = 2) -> Any:
    """One layer of a prompt under `policy`, opened before, as the runner does."""
    recipe = resolve(parse(policy))
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(4, len(IS_IMAGE), 16, generator=generator) for _ in range(3))
    opened = PromptPolicy(recipe, IS_IMAGE, num_layers)
    look = PromptLook(opened, IS_IMAGE, num_layers=num_layers, backend=REFERENCE)

    def run() -> None:
        one = look.layer(0, 0.25)
        one.attend(q, k, v)
        one.compress(q, k, v)

    return run


@pytest.mark.parametrize("policy", ["look-m@0.5", "h2o@0.2", "snapkv@0.2", "streaming@0.2"])
def test_a_look_never_asks_the_host(policy: Any) -> None:
    asked = questions(layer(policy))
    # `x[1:] = 3` sends its number along with the launch: nobody waits.
    assert [each for each in asked if "lift_fresh" not in each] == []


def test_the_detector_sees_a_budget_that_is_measured() -> None:
    asked = questions(layer("d2o@0.2"))
    assert [each for each in asked if "lift_fresh" not in each]
