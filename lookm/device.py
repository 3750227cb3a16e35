"""Where the model runs, and in which type: what was asked for, checked against what is there.

Decided once at start. Knows torch's devices; the checkpoint's own type is handed in.
"""

import logging
from typing import Any, get_args

import torch

from lookm.config import DType, KvCacheDType
from lookm.errors import ConfigError

#: Of the CPU's allocator, of CUDA outside of torch's, of cuBLAS: plain `RuntimeError`s.
OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
OLDEST_FP8 = (8, 9)  # compute capability

logger = logging.getLogger(__name__)


def choose_device(name: str) -> torch.device:
    """The device called `auto`, `cpu`, `cuda` or `cuda:N`, made current where it is a GPU.

    Raises `ConfigError` for one that is not there, and says why.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cpu" and torch.version.cuda is not None:
            logger.warning("device: cpu, because %s", _missing_cuda())
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:N.")
    if device.type == "cpu":
        return device
    if not torch.cuda.is_available():
        raise ConfigError(f"device {name!r} cannot be used: {_missing_cuda()}.")
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise ConfigError(f"device {name!r} does not exist: {count} found, counted from cuda:0.")
    if device.index is not None:
        torch.cuda.set_device(device)  # streams, graphs and events are the current device's
    return device


def choose_dtype(requested: DType, own: Any, device: torch.device) -> torch.dtype:
    """The requested type, or the checkpoint's; float16 on a CPU becomes bfloat16 (it is slow)."""
    if requested != "auto":
        dtype: torch.dtype = getattr(torch, requested)
        return dtype
    own = own or torch.float32
    own = getattr(torch, own) if isinstance(own, str) else own
    return torch.bfloat16 if own == torch.float16 and device.type == "cpu" else own


def choose_kv_cache_dtype(requested: KvCacheDType, device: torch.device) -> KvCacheDType:
    """How keys and values are stored. Raises `ConfigError` for what this device cannot read."""
    if requested not in get_args(KvCacheDType):
        raise ConfigError(f"unknown kv_cache_dtype {requested!r}: use auto, int8 or fp8.")
    problem = None
    if requested == "fp8" and device.type != "cuda":
        problem = f"the device is {device.type}"
    elif requested == "fp8" and torch.cuda.get_device_capability(device) < OLDEST_FP8:
        problem = f"{torch.cuda.get_device_name(device)} is older than Ada"
    if problem is not None:
        raise ConfigError(
            f"kv_cache_dtype 'fp8' cannot be used: {problem}. 'int8' is as small, and runs "
            "everywhere."
        )
    return requested


def is_out_of_memory(error: BaseException) -> bool:
    """Whether something did not fit, and the device works on.

    Other errors of CUDA stay with its context: all that is left is to end the process.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in OUT_OF_MEMORY)


def _missing_cuda() -> str:
    """Why torch sees no GPU, and what to look at."""
    torch_is = f"torch {torch.__version__}"
    if torch.version.cuda is None:
        return f"{torch_is} is built without CUDA (in Docker: docker/compose.gpu.yml)"
    return (
        f"{torch_is} finds no CUDA device (what the driver sees: nvidia-smi; in Docker the "
        "container needs the NVIDIA Container Toolkit and --gpus)"
    )
