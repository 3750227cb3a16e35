"""A prefill that looks queues a layer's work and never waits for it: the device stays busy."""

import pytest
import torch

from lookm.attention import ReferenceAttention
from lookm.look import look
from lookm.policy import open_ledger, parse, resolve
from tests.lookm.host_syncs import questions

IS_IMAGE = torch.tensor([False] + [True] * 40 + [False] * 9)


def layer(policy, ledger_layers=2):
    """One layer of a prompt under `policy`, its ledger opened before, as a step does."""
    recipe = resolve(parse(policy))
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(4, len(IS_IMAGE), 16, generator=generator) for _ in range(3))
    ledger = open_ledger(recipe, IS_IMAGE, ledger_layers)
    return lambda: look(
        q, k, v,
        is_image_T=IS_IMAGE, recipe=recipe, ledger=ledger, scale=0.25,
        attention=ReferenceAttention(), layer=0, num_layers=ledger_layers,
    )  # fmt: skip


@pytest.mark.parametrize("policy", ["look-m@0.5", "h2o@0.2", "snapkv@0.2", "streaming@0.2"])
def test_a_look_never_asks_the_host(policy):
    asked = questions(layer(policy))
    # `x[1:] = 3` sends its number along with the launch: nobody waits.
    assert [each for each in asked if "lift_fresh" not in each] == []


def test_the_detector_sees_a_budget_that_is_measured():
    asked = questions(layer("d2o@0.2"))
    assert [each for each in asked if "lift_fresh" not in each]
