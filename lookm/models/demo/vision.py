"""The eyes: a small CLIP tower taught to name what each patch shows.

Knows pictures and patch labels. Knows nothing of language. The tower is trained first, because
language training gets nowhere on features that say nothing; it goes on learning there, more slowly.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from lookm.models.demo.bank import (
    COLOUR_LABELS,
    IMAGE_PX,
    KIND_LABELS,
    NO_LABEL,
    PATCH_PX,
    PLACE_LABELS,
    Bank,
)
from lookm.models.demo.optim import Clock, Optimizer

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


class PatchNamer(nn.Module):
    """The tower with one linear head per label; only the tower is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = CLIPVisionModel._from_config(vision_config(), attn_implementation="eager")
        widths = (len(KIND_LABELS), len(COLOUR_LABELS), len(PLACE_LABELS))
        self.head = nn.ModuleList(nn.Linear(128, width) for width in widths)

    def forward(self, pixels_BCHW: Tensor) -> list[Tensor]:
        """Logits [B, patches, labels] for kind, colour and place."""
        states = self.tower(pixel_values=pixels_BCHW).last_hidden_state[:, 1:]
        return [head(states) for head in self.head]


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
        loss, _ = _loss(namer, bank, rows, device)
        torch.autograd.backward(loss)
        optimizer.step(clock.share_done)
        step += 1
        if step % 50 == 0 or clock.share_done >= 1.0:
            with torch.no_grad():
                _, right = _loss(namer, bank, np.arange(held, held + 1024), device)
            line = {"vision_step": step, "s": clock.used_s, "loss": loss.item()}
            line |= dict(zip(("kind", "colour", "place"), right.tolist(), strict=True))
            log(json.dumps({key: round(value, 4) for key, value in line.items()}))
    torch.save(namer.tower.state_dict(), path)
    return namer.tower.eval()


def _loss(namer: PatchNamer, bank: Bank, rows: np.ndarray, device: str) -> tuple[Tensor, Tensor]:
    pixels = torch.from_numpy(bank.pixels[rows]).to(device)
    labels = torch.from_numpy(bank.labels[rows]).to(device).long()
    with torch.autocast(device.split(":")[0], dtype=torch.bfloat16):
        logits = namer(normalise(pixels))
    on_object = labels[..., 2] != NO_LABEL
    weight = torch.where(on_object, 2.0, 1.0)
    loss, right = torch.zeros((), device=device), []
    for i, logit in enumerate(logits):
        each = nn.functional.cross_entropy(
            logit.float().flatten(0, 1),
            labels[..., i].flatten(),
            reduction="none",
            ignore_index=NO_LABEL,
        )
        loss = loss + (each * weight.flatten()).mean()
        right.append((logit.argmax(-1) == labels[..., i])[on_object].float().mean().cpu())
    return loss, torch.stack(right)
