"""How much memory is free, and how many pages of it the KV cache gets.

Asked once at start; the answer is part of the plan.
"""

from pathlib import Path

import torch

from lookm.cache import page_bytes, pages_for
from lookm.config import EngineConfig, EnginePlan
from lookm.errors import ConfigError
from lookm.models.adapter import Adapter

CPU_SHARE = 0.25  # of free memory: pixels, activations and the other processes live there too
GPU_SHARE = 0.85  # of what is free once the weights are loaded

_CGROUP_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)


def make_plan(config: EngineConfig, adapter: Adapter, *, model_path: str) -> EnginePlan:
    """Decide everything that was left open. Raises `ConfigError` where it cannot be met."""
    dims = adapter.dimensions
    size = page_bytes(dims.num_kv_heads, config.page_tokens, dims.head_dim, adapter.dtype)
    context = config.max_context_tokens or dims.max_context_tokens
    if context > dims.max_context_tokens:
        raise ConfigError(
            f"max_context_tokens {context} is more than the model's {dims.max_context_tokens}"
        )
    pages_per_layer = pages_for(context, config.page_tokens)
    enough = config.max_running * pages_per_layer * dims.num_layers
    if config.kv_cache_bytes is None:
        num_pages = min(enough, int(_free_bytes(adapter.device)) // size)
    else:
        num_pages = config.kv_cache_bytes // size
    if num_pages < dims.num_layers:
        raise ConfigError(
            f"the KV cache memory holds {num_pages} pages of {size} bytes; this model needs at "
            f"least {dims.num_layers} (one per layer): raise it"
        )
    return EnginePlan(
        model_path=model_path,
        device=str(adapter.device),
        dtype=str(adapter.dtype).removeprefix("torch."),
        num_layers=dims.num_layers,
        num_heads=dims.num_heads,
        num_kv_heads=dims.num_kv_heads,
        head_dim=dims.head_dim,
        page_tokens=config.page_tokens,
        num_pages=num_pages,
        page_bytes=size,
        kv_bytes_per_token=size // config.page_tokens * dims.num_layers,
        max_context_tokens=context,
        threads=torch.get_num_threads(),
        attention=config.attention,
    )


def _free_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        return GPU_SHARE * free
    return CPU_SHARE * free_host_bytes()


def free_host_bytes() -> int:
    """Memory this process can still take: the kernel's estimate, within the container's limit."""
    free = 2**63
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    for limit_path, used_path in _CGROUP_LIMITS:
        limit, used = _read_int(limit_path), _read_int(used_path)
        if limit is not None and used is not None:
            free = min(free, max(0, limit - used))
    return free if free < 2**63 else 4 * 2**30


def _read_int(path: str) -> int | None:
    """The number in a cgroup file; None where there is no file, or it says "max"."""
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None
