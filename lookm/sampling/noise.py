"""The draws of one request: exponential noise from its seed, on the device that holds the logits.

The same seed gives the same draws on one kind of device, whatever else is in the batch; a CPU and a
GPU draw differently. Knows no tokens.
"""

import secrets
from typing import Protocol

import numpy as np
import torch


class Noise(Protocol):
    """One request's generator."""

    def fill(self, noise_V: torch.Tensor) -> None:
        """The next draws from the exponential distribution, into a float32 tensor."""
        ...


class HostNoise:
    """On a CPU, where numpy draws several times faster than torch."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64DXSM(seed))

    def fill(self, noise_V: torch.Tensor) -> None:
        self._generator.standard_exponential(out=noise_V.numpy(), dtype=np.float32)


class DeviceNoise:
    """On a GPU: a vocabulary of noise for every row of every step is too much to send there."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._generator = torch.Generator(device).manual_seed(seed)

    def fill(self, noise_V: torch.Tensor) -> None:
        noise_V.exponential_(generator=self._generator)


def make_noise(seed: int | None, device: torch.device) -> Noise:
    """The generator for logits on `device`; a request without a seed gets a random one."""
    seed = secrets.randbits(64) if seed is None else seed % 2**64
    return HostNoise(seed) if device.type == "cpu" else DeviceNoise(seed, device)
