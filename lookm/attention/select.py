"""Which implementation of attention this process uses: decided once, at start.

Knows the names. Never falls back in silence: what was chosen, and why, is logged here.
"""

import logging

import torch

from lookm.attention.api import Attention
from lookm.attention.reference import ReferenceAttention
from lookm.errors import ConfigError

logger = logging.getLogger(__name__)

NAMES = ("auto", "reference", "cpu")


def choose(name: str, device: torch.device | str, dtype: torch.dtype | None = None) -> Attention:
    """The implementation called `name`; `"auto"` is the fastest that can run here.

    `"cpu"` are the C++ kernels (float32, bfloat16), compiled at their first use. Raises
    `ConfigError` for a name that does not exist or cannot run here.
    """
    if name not in NAMES:
        raise ConfigError(f"unknown attention {name!r}: choose one of {', '.join(NAMES)}.")
    if name == "reference":
        return ReferenceAttention()
    problem = _cpu_problem(torch.device(device), dtype)
    if problem is None:
        try:
            return _cpu()
        except (RuntimeError, OSError) as error:
            problem = f"the C++ kernels cannot be built: {str(error).strip().splitlines()[0]}"
    if name == "cpu":
        raise ConfigError(f"attention 'cpu' cannot be used: {problem}.")
    logger.warning("attention: reference (torch), because %s", problem)
    return ReferenceAttention()


def _cpu_problem(device: torch.device, dtype: torch.dtype | None) -> str | None:
    """Why the C++ kernels cannot run, or None."""
    from lookm.attention.kernels.build import cached_library, missing_tools

    if device.type != "cpu":
        return f"the device is {device.type}"
    if dtype not in (None, torch.float32, torch.bfloat16):
        return f"the type is {dtype}"
    missing = [] if cached_library().exists() else missing_tools()
    return f"{' and '.join(missing)} is missing" if missing else None


def _cpu() -> Attention:
    from lookm.attention.kernels.build import cached_library, load_kernel
    from lookm.attention.kernels.cpu import CpuAttention

    if not cached_library().exists():
        logger.info("attention: compiling the C++ kernels, once; this takes half a minute")
    kernel = load_kernel()
    logger.info("attention: cpu (C++ kernels)")
    return CpuAttention(kernel)
