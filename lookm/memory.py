"""How much memory is free, and how many pages of it the KV cache gets.

Asked once at start; the answer is part of the plan. On a GPU it is measured: what is free once the
weights are loaded, less what the longest prefill takes at its peak. The arithmetic from there on is
`sizing`'s, as it is for `lookm plan` (`server.plan`), which estimates what is measured here.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from lookm.attention import Backend
from lookm.config import EngineConfig, EnginePlan
from lookm.device import choose_kv_cache_dtype
from lookm.errors import ConfigError
from lookm.look import PromptLook
from lookm.models.adapter import Adapter
from lookm.models.attention_interface import LayerRows
from lookm.models.inputs import PackedRows
from lookm.models.vision import MAX_IMAGES_TOGETHER
from lookm.pages import PageLayout
from lookm.policy import PromptPolicy, resolve
from lookm.sizing import (
    CacheShape,
    conversations_line,
    enough_pages,
    gpu_pool_bytes,
    longest_prefill_tokens,
    transfer_bytes,
)
from lookm.types import ImageInput

STORE_SHARE = 0.1  # of free host memory, for the prompt store
CPU_SHARE = 0.25  # of free memory: pixels, activations and the other processes live there too
PROFILE_TOKENS = 16384  # a longer prefill is taken to need proportionally more
PROFILE_POLICY = "look-m@0.2"

logger = logging.getLogger(__name__)

_CGROUP_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)


def make_plan(
    config: EngineConfig,
    adapter: Adapter,
    backend: Backend,
    *,
    model_path: str,
    image: ImageInput | None = None,
) -> EnginePlan:
    """Decide everything that was left open. Raises `ConfigError` where it cannot be met.

    `image` is a large one, to measure on a GPU what encoding images takes.
    """
    dims = adapter.dimensions
    kv_cache_dtype = choose_kv_cache_dtype(config.kv_cache_dtype, adapter.device)
    layout = PageLayout(
        dims.num_kv_heads, config.page_tokens, dims.head_dim, adapter.dtype, kv_cache_dtype
    )
    size = layout.page_bytes
    context = config.max_context_tokens or dims.max_context_tokens
    if context > dims.max_context_tokens:
        raise ConfigError(
            f"max_context_tokens {context} is more than the model's {dims.max_context_tokens}"
        )
    if config.kv_cache_bytes is None:
        free = _free_bytes(config, adapter, backend, context, layout.raw.page_bytes, image)
        num_pages = min(enough_pages(config, context, dims.num_layers), free // size)
    else:
        _check_possible(config.kv_cache_bytes, adapter.device)
        num_pages = config.kv_cache_bytes // size
    if num_pages < dims.num_layers:
        raise ConfigError(
            f"the KV cache memory holds {max(0, num_pages)} pages of {size} bytes; this model "
            f"needs at least {dims.num_layers} (one per layer): raise it, or lower "
            "max_context_tokens, so that the longest prefill leaves more"
        )
    tokens = min(4096, context)
    shape = CacheShape(config.page_tokens, size, dims.windows_L)
    logger.info(
        "KV cache: %.2f GiB; conversations of %s tokens: %s",
        num_pages * size / 2**30,
        f"{tokens:,}",
        conversations_line(shape, num_pages, tokens, config.max_running),
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
        attention=backend.name,
        prompt_store_bytes=_store_bytes(config),
        kv_cache_dtype=kv_cache_dtype,
    )


def _store_bytes(config: EngineConfig) -> int:
    if config.prompt_store_bytes is not None:
        return config.prompt_store_bytes
    return int(STORE_SHARE * free_host_bytes())


def _check_possible(requested_bytes: int, device: torch.device) -> None:
    """Refuse a pool that can never be; one that is too large just now is the allocator's to say."""
    if device.type == "cuda":
        total = torch.cuda.mem_get_info(device)[1] - torch.cuda.memory_allocated(device)
    else:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        total = min([total, *filter(None, (_read_int(limit) for limit, _used in _CGROUP_LIMITS))])
    if requested_bytes > total:
        raise ConfigError(
            f"the KV cache memory is to be {requested_bytes / 2**30:.2f} GiB, but this machine has "
            f"{total / 2**30:.2f} GiB for it: lower it"
        )


def _free_bytes(
    config: EngineConfig,
    adapter: Adapter,
    backend: Backend,
    context: int,
    raw_page_bytes: int,
    image: ImageInput | None,
) -> int:
    if adapter.device.type != "cuda":
        return int(CPU_SHARE * free_host_bytes())
    longest = longest_prefill_tokens(config, context)
    needed = prefill_bytes(adapter, backend, longest)
    if _store_bytes(config):
        needed += transfer_bytes(raw_page_bytes, config.page_tokens, longest)
    if image is not None:
        needed = max(needed, encode_bytes(adapter, image))
    # What the measured prefill left in torch's cache is free for pages.
    torch.cuda.empty_cache()
    free, _total = torch.cuda.mem_get_info(adapter.device)
    return gpu_pool_bytes(config, free, needed)


def prefill_bytes(adapter: Adapter, backend: Backend, num_tokens: int) -> float:
    """Memory that a prefill of `num_tokens` takes at its peak, besides pages; measured, on CUDA."""
    measured = min(num_tokens, PROFILE_TOKENS)
    with _peak_bytes(adapter.device) as peak, torch.inference_mode():
        pos_RT = torch.arange(measured, device=adapter.device).expand(adapter.position_rows, -1)
        rows = PackedRows(adapter.embed_tokens([0] * measured), pos_RT)
        looking = _Looking(backend, measured, adapter.dimensions.num_layers, adapter.device)
        adapter.logits(adapter.forward(rows, looking)[-1:])
    return peak[0] * num_tokens / measured


def encode_bytes(adapter: Adapter, image: ImageInput) -> float:
    """Memory that encoding takes of as many such images as go together; measured, on CUDA."""
    images = [replace(image, digest=str(i)) for i in range(MAX_IMAGES_TOGETHER)]
    with _peak_bytes(adapter.device) as peak:
        adapter.vision.encode_images(images)
    return peak[0]


@contextlib.contextmanager
def _peak_bytes(device: torch.device) -> Iterator[list[int]]:
    """Fills the list with the most that was taken inside, over what was taken before."""
    found: list[int] = []
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    yield found
    found.append(torch.cuda.max_memory_allocated(device) - before)


class _Looking:
    """A prefill that is looked at, and stored nowhere (`interface.StepContext`).

    On a GPU it is the first: what kernels it needs are compiled here, not in the first request.
    """

    def __init__(
        self, backend: Backend, num_tokens: int, num_layers: int, device: torch.device
    ) -> None:
        is_image_T = torch.ones(num_tokens, dtype=torch.bool)
        self._look = PromptLook(
            PromptPolicy(resolve(PROFILE_POLICY), is_image_T, num_layers, device=device),
            is_image_T.to(device),
            num_layers=num_layers,
            backend=backend,
        )

    def attend(self, rows: LayerRows) -> torch.Tensor:
        """Attention and compression; a window, which needs less, is not looked at differently."""
        layer = self._look.layer(rows.layer, rows.scale)
        out_THD = layer.attend(rows.q_HTD, rows.k_KTD, rows.v_KTD)
        layer.compress(rows.q_HTD, rows.k_KTD, rows.v_KTD)
        return out_THD


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
