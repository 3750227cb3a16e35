"""Every setting of the server, once: the flag, the `LOOKM_*` variable, the default and the help.

`server.cli` builds its options from these fields, so a flag and its variable cannot differ. A flag
wins over the environment. Knows nothing about how a setting is used.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from lookm.config import AttentionName, DType, EngineConfig, Graphs, KvCacheDType, Quantization
from lookm.types import Reuse
from server.logs import LogFormat
from server.media.config import MAX_REQUEST_PIXELS, MediaConfig, VideoConfig
from server.media.pdf import MAX_PAGE_PIXELS
from server.paths import parse_root_path
from server.sizes import parse_size


def parse_list(value: object) -> object:
    """`"a,b"` as `("a", "b")`; anything else unchanged."""
    if isinstance(value, str):
        return tuple(item.strip() for item in value.split(",") if item.strip())
    return value


def parse_keys(value: object) -> object:
    """As `parse_list`; a text without a key is a mistake, which must not open the server."""
    keys = parse_list(value)
    if isinstance(value, str) and not keys:
        raise ValueError("there is no key in it")
    return keys


Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]
SizeOrNone = Annotated[int, BeforeValidator(parse_size), Field(ge=0)]  # 0: none of it
Names = Annotated[tuple[str, ...], BeforeValidator(parse_list)]
RootPath = Annotated[str, BeforeValidator(parse_root_path)]
ReplicaName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Settings(BaseSettings):
    """What the operator has set. Read it with `Settings()`, or `Settings(port=8123)`."""

    model_config = SettingsConfigDict(
        env_prefix="LOOKM_",
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,
        enable_decoding=False,
        protected_namespaces=(),
    )

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    root_path: RootPath = Field(
        "", description="Prefix under which a proxy shows the server, such as /lookm."
    )
    replica: ReplicaName | None = Field(
        None, description="Name of this server among several, sent as x-lookm-replica."
    )
    model: str = Field("llava-demo", description="Bundled name, directory or hub name.")
    served_model_name: str | None = Field(None, description="Name that clients use for the model.")
    model_alias: Names = Field(
        (), description="Other names: gpt-4o=llava-demo:look-m-plus@0.2; several with commas."
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    dtype: DType = Field("auto", description="Weights and cache: auto, float32, bfloat16, float16.")
    quantization: Quantization = Field(
        "none",
        description="Of weights, on load: int8 (the language model's linear layers) or none.",
    )
    attention: AttentionName = Field(
        "auto", description="auto, reference, cpu (C++) or triton (CUDA)."
    )
    generation_config: Literal["auto", "none"] = Field(
        "auto",
        description="Where a request does not say: auto samples as the checkpoint's "
        "generation_config.json does, none as OpenAI (temperature 1, nothing cut off).",
    )
    graphs: Graphs = Field("auto", description="Decode steps from CUDA graphs: auto, on or off.")
    threads: Count | None = Field(None, description="CPU threads of the engine.")

    kv_cache: str = Field("full", description="Cache policy where a request names none.")
    kv_cache_dtype: KvCacheDType = Field(
        "auto",
        description="How the pool stores keys and values: auto (as --dtype), int8 (half of 16 "
        "bits, anywhere) or fp8 (as small, on CUDA from Ada on).",
    )
    kv_cache_memory: Size | None = Field(
        None, description="KV pool: 2GiB, 512MiB; else free memory."
    )
    prompt_store_memory: SizeOrNone | None = Field(
        None,
        description="Host memory for what prompts computed: later turns compute only what is new. "
        "0 turns it off; else a tenth of free memory.",
    )
    reuse: Reuse = Field(
        "exact",
        description="Where a request does not say: exact takes over what earlier prompts computed, "
        "kept goes on from what earlier turns kept, none computes everything.",
    )
    parking: bool = Field(
        True, description="Conversations keep their pages between turns until others need them."
    )
    positions: bool = Field(
        True,
        description="Requests may ask which tokens of their prompt were kept (`positions` in "
        "`kv_cache`).",
    )
    prompt_store_shared: bool = Field(
        False, description="Requests with different API keys reuse each other's prompts."
    )
    image_cache_memory: Size = Field(256 * 2**20, description="Vision features kept for reuse.")
    image_input_memory: Size = Field(
        256 * 2**20, description="Images that may be named again, in each of the two processes."
    )
    response_store_memory: SizeOrNone = Field(
        256 * 2**20,
        description="Responses (/v1/responses) kept for follow-ups, of all keys together; those "
        "of the key that holds the most go, the least recently used first. 0 keeps none.",
    )
    max_context_tokens: Count | None = Field(
        None, description="Longest prompt and answer together."
    )
    max_step_tokens: Count = Field(2048, description="Tokens one engine step may process.")
    max_step_ms: Count | None = Field(
        None,
        description="How long others wait for a prompt: a long one is prefilled in pieces of this "
        "time. Else four times what decoding takes, 100 to 250, on a GPU 30 to 50.",
    )
    max_running: Count = Field(64, description="Requests decoded together.")
    max_waiting: Count = Field(
        256,
        description="Requests that may wait before 429; those with a free place and pages do not.",
    )
    max_running_per_key: Count | None = Field(
        None,
        description="Choices that requests with one API key may have running together. Others wait "
        "for those, as large a share of --max-waiting as this is of --max-running; more are a 429.",
    )

    api_keys: Annotated[tuple[SecretStr, ...], BeforeValidator(parse_keys)] = Field(
        (), description="Accepted API keys, comma-separated; none: no key is asked for."
    )
    api_key_file: Path | None = Field(
        None, description="File with one accepted API key a line; # begins a comment."
    )
    key_limits: Path | None = Field(
        None,
        description="TOML file of API keys by name, with what each may ask for: requests and "
        "tokens a minute, places, policies. SIGHUP has it read again.",
    )
    playground: bool = Field(
        True, description="A page at / to chat with images and see what a policy kept of them."
    )
    cors_origins: Names = Field((), description="Origins browsers may call from, or '*'.")
    max_body: Size = Field(160 * 2**20, description="Largest request body.")
    max_body_total: Size = Field(2**30, description="Bodies being received or prepared together.")
    max_connections: Count = Field(
        4096,
        description="Connections at once, within the system's limit of open files; where there are "
        "more, idle ones are closed.",
    )
    receive_timeout_s: Seconds = Field(
        30,
        description="How long a request may take to arrive; longer at 64 KiB/s or more. As long "
        "may its client not read the answer.",
    )
    stream_keep_alive_s: float = Field(
        5, ge=0, description="A comment in streams that send nothing for so long; 0 turns it off."
    )
    request_timeout_s: Seconds | None = Field(None, description="Deadline of one request.")

    max_images: Count = Field(
        64, description="Images in one request; a page of a PDF is one, and a frame of a video."
    )
    media_threads: Count = Field(2, description="Threads that prepare images and prompts.")

    media_allow_private: bool = Field(False, description="Images from private addresses, too.")
    media_allowed_hosts: Names = Field((), description="The only hosts images may come from.")
    media_max_bytes: Size = Field(20 * 2**20, description="Largest single image, encoded.")
    max_file_bytes: Size = Field(64 * 2**20, description="Largest PDF, sent or uploaded.")
    file_memory: SizeOrNone = Field(
        256 * 2**20,
        description="Uploaded files (/v1/files), of all API keys together; where there is no room, "
        "those go that were not used for the longest time, of the key that holds the most.",
    )
    media_memory: Size = Field(
        3 * 2**29,
        description="What decoding images may take at once; what never fits is refused.",
    )
    media_max_video_bytes: Size = Field(100 * 2**20, description="Largest single video, encoded.")
    media_max_video_s: Seconds = Field(3600, description="Longest video.")
    media_fetch_timeout_s: Seconds = Field(
        10, description="How long one download may take; of a video 30 at least."
    )

    start_timeout_s: Seconds = Field(1800, description="How long loading the model may take.")
    step_timeout_s: Seconds | None = Field(
        None,
        description="How long one engine step may take before the worker is replaced. Else ten "
        "times the longest so far, at least 5 minutes, on a GPU one; a layer ten times what such "
        "took, at least 15 s, on a GPU a minute; 15 s if it does nothing.",
    )
    exit_on_worker_failure: bool = Field(
        False, description="Exit with status 1 when the worker fails, for Kubernetes to start anew."
    )
    drain_timeout_s: Seconds = Field(
        30, description="How long running requests may finish at stop."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Log level."
    )
    log_format: LogFormat = Field(
        "text", description="Log lines: text, or json (one object a line, the same fields)."
    )
    otlp_endpoint: str | None = Field(
        None,
        description="Send traces to this OpenTelemetry collector (OTLP over HTTP), such as "
        "http://127.0.0.1:4318; needs lookm-server[otel].",
    )
    metrics_vllm_names: bool = Field(True, description="Also expose core metrics as vllm:*.")

    def engine_config(self) -> EngineConfig:
        """The part of it that the engine decides on."""
        return EngineConfig(
            model=self.model,
            device=self.device,
            dtype=self.dtype,
            quantization=self.quantization,
            kv_cache_bytes=self.kv_cache_memory,
            kv_cache_dtype=self.kv_cache_dtype,
            max_running=self.max_running,
            max_waiting=self.max_waiting,
            max_step_tokens=self.max_step_tokens,
            max_step_ms=self.max_step_ms,
            max_context_tokens=self.max_context_tokens,
            image_cache_bytes=self.image_cache_memory,
            threads=self.threads,
            attention=self.attention,
            graphs=self.graphs,
            prompt_store_bytes=self.prompt_store_memory,
            parking=self.parking,
        )

    def media_config(self) -> MediaConfig:
        """The part of it that guards against untrusted images and videos."""
        return MediaConfig(
            max_bytes=self.media_max_bytes,
            max_file_bytes=self.max_file_bytes,
            max_request_images=self.max_images,
            max_request_pixels=max(MAX_REQUEST_PIXELS, self.max_images * MAX_PAGE_PIXELS),
            max_decodes=self.media_threads,
            max_videos=max(1, self.media_threads // 2),
            video=VideoConfig(max_bytes=self.media_max_video_bytes, max_s=self.media_max_video_s),
            memory_bytes=self.media_memory,
            fetch_timeout_s=self.media_fetch_timeout_s,
            allow_private=self.media_allow_private,
            allowed_hosts=self.media_allowed_hosts or None,
        )

    @property
    def max_per_key(self) -> int | None:
        """Choices of one API key that run or wait, where it has no limit of its own."""
        return self.held_by_key(self.max_running_per_key)

    @property
    def asks_for_key(self) -> bool:
        """Whether requests need an API key."""
        return bool(self.key_limits or self.keys())

    def held_by_key(self, running: int | None) -> int | None:
        """Choices that run or wait of a key of which so many may run."""
        if running is None:
            return None
        return running + self.max_waiting * min(running, self.max_running) // self.max_running

    def keys(self) -> tuple[str, ...]:
        """Every accepted API key. Raises `ValueError` for a file that has none."""
        listed = tuple(key.get_secret_value() for key in self.api_keys)
        if self.api_key_file is None:
            return listed
        try:
            lines = self.api_key_file.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise ValueError(f"--api-key-file {self.api_key_file}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ValueError(f"--api-key-file {self.api_key_file}: not a text file") from None
        filed = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
        if not filed:  # an empty secret must not open the server
            raise ValueError(f"--api-key-file {self.api_key_file}: there is no key in it")
        return listed + filed


def unknown_variables(environ: Mapping[str, str]) -> dict[str, str | None]:
    """`LOOKM_*` variables that are no setting, each with the one that was perhaps meant."""
    known = [name.upper() for name in Settings.model_fields]
    found: dict[str, str | None] = {}
    for name in environ:
        prefix, setting = name[:6].upper(), name[6:].upper()
        if prefix == "LOOKM_" and setting not in known:
            near = get_close_matches(setting, known, 1)
            found[name] = f"LOOKM_{near[0]}" if near else None
    return found
