"""The eyes: a small CLIP tower taught to name what each patch shows.

Knows pictures and patch labels. Knows nothing of language. The tower is trained first, because
language training gets nowhere on features that say nothing; it goes on learning there, more slowly.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from lookm.demo.training.bank import (
    COLOUR_LABELS,
    IMAGE_PX,
    KIND_LABELS,
    NO_LABEL,
    PATCH_PX,
    PLACE_LABELS,
    Bank,
)
from lookm.demo.training.optim import Clock, Optimizer

Log = Callable[[str], None]


def vision_config() -> CLIPVisionConfig:
    """0.9 M parameters: 4 layers of width 128 on 8 x 8 patches."""
    return CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_PX,
        patch_size=PATCH_PX,
        hidden_act="gelu",
    )


class PatchHeads(nn.Module):
    """One linear layer per label on the tower's patch features; needed in training only."""

    def __init__(self) -> None:
        super().__init__()
        widths = (len(KIND_LABELS), len(COLOUR_LABELS), len(PLACE_LABELS))
        self.head = nn.ModuleList(nn.Linear(128, width) for width in widths)

    def loss(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross entropy of features [B, patches, 128] against labels [B, patches, 3] of a bank, and
        the share of object patches named rightly: kind, colour, place."""
        on_object = labels[..., 2] != NO_LABEL
        weight = torch.where(on_object, 2.0, 1.0).flatten()
        loss, right = torch.zeros((), device=labels.device), []
        for i, head in enumerate(self.head):
            logits = head(features.float())
            wanted = labels[..., i].long()
            each = nn.functional.cross_entropy(
                logits.flatten(0, 1), wanted.flatten(), reduction="none", ignore_index=NO_LABEL
            )
            loss = loss + (each * weight).mean()
            right.append((logits.argmax(-1) == wanted)[on_object].float().mean())
        return loss, torch.stack(right)


class PatchNamer(nn.Module):
    """The tower with its heads."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = CLIPVisionModel._from_config(vision_config(), attn_implementation="eager")
        self.heads = PatchHeads()

    def loss(self, bank: Bank, rows: npt.NDArray[np.int64], device: str) -> tuple[Tensor, Tensor]:
        """Loss and accuracies of some rows of a bank."""
        pixels = torch.from_numpy(bank.pixels[rows]).to(device)
        features = look(self.tower, pixels)
        return self.heads.loss(features, torch.from_numpy(bank.labels[rows]).to(device))


def look(tower: Any, pixels: Tensor) -> Tensor:
    """Patch features [B, patches, 128], as `LlavaModel` selects them, of uint8 [B, H, W, 3]."""
    with torch.autocast(pixels.device.type, dtype=torch.bfloat16):
        states: Tensor = tower(pixel_values=normalise(pixels)).last_hidden_state
    return states[:, 1:]


def normalise(pixels: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] to the float [B, 3, H, W] in [-1, 1] that the image processor yields."""
    return pixels.permute(0, 3, 1, 2).float().mul(2 / 255).sub(1)


def train_tower(
    bank: Bank, minutes: float, device: str, work: Path, batch: int, log: Log
) -> CLIPVisionModel:
    """Train on a bank for so many minutes; a tower already saved in `work` is loaded instead."""
    path = work / "tower.pt"
    namer = PatchNamer().to(device)
    if path.exists():
        namer.tower.load_state_dict(torch.load(path, map_location=device, weights_only=True))
        return namer.tower.eval()
    optimizer = Optimizer(namer.named_parameters(), peak_rate=2e-3)
    clock, order, step = Clock(minutes), np.random.default_rng(0), 0
    held = len(bank.pixels) - 1024
    while clock.share_done < 1.0:
        rows = np.sort(order.choice(held, batch, replace=False))
        loss, _ = namer.loss(bank, rows, device)
        torch.autograd.backward(loss)
        optimizer.step(clock.share_done)
        step += 1
        if step % 50 == 0 or clock.share_done >= 1.0:
            with torch.no_grad():
                _, right = namer.loss(bank, np.arange(held, held + 1024), device)
            line = {"vision_step": step, "s": clock.used_s, "loss": loss.item()}
            line |= dict(zip(("kind", "colour", "place"), right.tolist(), strict=True))
            log(json.dumps({key: round(value, 4) for key, value in line.items()}))
    torch.save(namer.tower.state_dict(), path)
    return namer.tower.eval()
