"""What was asked of the engine (`EngineConfig`) and what was decided (`EnginePlan`).

Two frozen values: the first comes from the user, the second is computed once at start from the
model and the machine, logged as one line, and never changes.
"""

from dataclasses import dataclass
from typing import Literal

DType = Literal["auto", "float32", "bfloat16", "float16"]
AttentionName = Literal["auto", "reference", "cpu", "triton"]
Graphs = Literal["auto", "on", "off"]
Quantization = Literal["none", "int8"]
KvCacheDType = Literal["auto", "int8", "fp8"]


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Everything a user can ask for. Bytes and tokens are in the names; None means "decide".

    `graphs`: decode steps replayed from CUDA graphs; "auto" is on where they can be, "off" calls
    the same step instead, for the same tokens. On a CPU "on" calls it too.

    A prompt that takes longer than a step of `max_step_ms` (four times what decoding takes, 100 to
    250, on a GPU 30 to 50) is prefilled in tiles of `tile_tokens` (512, on a GPU 2,048; 0: none
    is), and stops when the step's time is up.

    `quantization`: the language model's linear layers are made int8 as they are loaded.
    `kv_cache_dtype`: how keys and values are stored (`kv_format`); fp8 on CUDA from Ada on.

    `parking`: conversations keep their pages between turns, until somebody needs them.

    `prompt_store_bytes` of host memory hold what prompts computed, for those that begin alike.
    """

    model: str = "llava-demo"
    device: str = "auto"
    dtype: DType = "auto"
    quantization: Quantization = "none"
    kv_cache_bytes: int | None = None
    kv_cache_dtype: KvCacheDType = "auto"
    page_tokens: int = 16
    max_running: int = 64
    max_waiting: int = 256
    max_step_tokens: int = 2048
    max_step_ms: int | None = None
    tile_tokens: int | None = None
    max_context_tokens: int | None = None
    image_cache_bytes: int = 256 * 2**20
    threads: int | None = None
    attention: AttentionName = "auto"
    graphs: Graphs = "auto"
    prompt_store_bytes: int | None = None
    parking: bool = True


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """What was decided at start."""

    model_path: str
    device: str
    dtype: str
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_tokens: int
    num_pages: int
    page_bytes: int
    kv_bytes_per_token: int
    max_context_tokens: int
    threads: int
    attention: str
    prompt_store_bytes: int = 0
    kv_cache_dtype: KvCacheDType = "auto"

    @property
    def capacity_bytes(self) -> int:
        """Bytes of K and V the page pool can hold, with their scales."""
        return self.num_pages * self.page_bytes
