"""A model made faster with what its device has: the one place where a way is chosen.

Knows kernels and modules. Knows nothing about devices by name: who has chosen the kernels does.
"""

import logging
from typing import Any

import torch
from torch import nn

from lookm.attention import ModelKernels
from lookm.models.fast.decoder_layer import replace_layers
from lookm.models.fast.fuse import fuse
from lookm.models.fast.matmul_choice import Chooser, replay_seconds
from lookm.models.fast.onednn import can_pack, pack
from lookm.models.fast.widened import can_widen, widen

logger = logging.getLogger(__name__)


def accelerate(model: Any, text_model: nn.Module, kernels: ModelKernels | None) -> bool:
    """Replace modules in place; returns whether linear layers were packed for this processor.

    Without kernels nothing is changed, nor on a CPU where the weights are not bfloat16.
    """
    if kernels is None:
        return False
    if kernels.linear is None:
        if can_pack(model):
            pack(model, kernels)
            return True
        if can_widen(model, kernels):
            widen(model, kernels)
        return False
    fuse(text_model, kernels)
    replace_layers(text_model, model, Chooser(kernels.linear, kernels.tiles, replay_seconds))
    torch.cuda.empty_cache()  # of merged weights' parts, and of the trials
    return False
