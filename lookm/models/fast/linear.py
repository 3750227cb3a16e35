"""Which linear layers the fast paths may take apart, and how: only here are classes looked at.

A layer of another class (quantised weights, adapters) is left as it is, and so is what contains it:
fusing and packing stand back. To support one, teach it here. Knows modules; knows no devices.
"""

from typing import TypeGuard

import torch
from torch import nn


def is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether the layer is its weight and bias and nothing else, by class, not by inheritance."""
    return type(module) is nn.Linear


def joinable(*modules: nn.Module) -> bool:
    """Whether these layers of one input can be one product."""
    return all(map(is_plain, modules)) and len({each.bias is None for each in modules}) == 1


def joined(*linears: nn.Linear) -> nn.Linear:
    """One product whose outputs are theirs, one after the other."""
    weight = torch.cat([linear.weight for linear in linears])
    one = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    one.weight = nn.Parameter(weight, requires_grad=False)
    biases: list[torch.Tensor] = [each.bias for each in linears if each.bias is not None]
    if biases:
        one.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return one
