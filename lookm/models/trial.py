"""How a module's faster twin is tried out: on random rows, against the module itself.

A twin is taken only where it computes what the module does, up to rounding. Knows tensors only.
"""

import torch


def noise(num_rows: int, size: int, like: torch.Tensor) -> torch.Tensor:
    """The same normal numbers every time, `[num_rows, size]`, of the type and device of `like`."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_rows, size, generator=generator).to(like.device, like.dtype)


def close(expected: torch.Tensor, found: torch.Tensor) -> bool:
    """Equal up to rounding, relative to the largest number of a row."""
    if expected.shape != found.shape:
        return False
    tolerance = 1e-4 if expected.dtype == torch.float32 else 2**-5
    error = (found.float() - expected.float()).abs().amax(dim=-1)
    return bool((error <= tolerance * expected.float().abs().amax(dim=-1)).all())
