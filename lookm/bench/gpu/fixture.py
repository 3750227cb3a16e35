"""What the GPU sections share: a random LLaVA on the device, engines over it, prompts, a clock.

The weights are made on the device and never written: speed and memory do not depend on their
values, quality is never measured here. Imports nothing of the HTTP server, so it runs where only
torch, transformers and triton are installed.
"""

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch

from lookm.bench.random_checkpoint import SHAPES, Shape, build
from lookm.config import EngineConfig
from lookm.engine import Engine
from lookm.models.adapter import Adapter
from lookm.models.families import family_of
from lookm.models.processor import Processor
from lookm.policy import parse
from lookm.types import ImageInput, Request, Sampling

IMAGE_ID = 3
FLUSH_BYTES = 256 * 2**20  # more than the second-level cache
SLEEP_CYCLES = 2_000_000  # a millisecond


@dataclass(frozen=True, slots=True)
class Scale:
    """One size of the whole grid. Prompts are `images` of the shape's size, and `words`."""

    shape: str
    images: int
    words: int
    long_images: int
    long_words: int
    batches: tuple[int, ...]
    generate_batch: int
    repeats: int
    step_tokens: int


SCALES = {
    "tiny": Scale("tiny", 4, 16, 8, 16, (1, 2, 4), 4, 2, 4096),
    "mid": Scale("mid", 2, 32, 6, 32, (1, 4), 4, 3, 4096),
    "7b": Scale("llava-1.5-7b", 7, 64, 28, 160, (1, 8, 16, 24), 16, 5, 16384),
}


class Words:
    """Stands in for a processor: the engine asks it for text, which nobody reads here."""

    name = "random"
    tokenizer_json = None

    def decode(self, ids: Any) -> str:
        return " " * len(ids)


@dataclass(slots=True)
class Lab:
    """The model under test and how to ask it. `engine` is made when it is first needed."""

    scale: Scale
    device: torch.device
    dtype: torch.dtype
    model: Any
    bandwidth: float = 0.0
    flops: float = 0.0
    _adapter: Adapter | None = None
    _engine: Engine | None = None
    _images: list[ImageInput] = field(default_factory=list)

    @classmethod
    def open(cls, scale: Scale, device: str, dtype: torch.dtype) -> "Lab":
        return cls(
            scale,
            torch.device(device),
            dtype,
            build(SHAPES[scale.shape], dtype=dtype, device=device),
        )

    @property
    def shape(self) -> Shape:
        return SHAPES[self.scale.shape]

    @property
    def adapter(self) -> Adapter:
        """From here on the model's attention is the engine's; `generate()` comes before."""
        if self._adapter is None:
            self._adapter = Adapter(self.model, family_of(self.model.config))
        return self._adapter

    @property
    def engine(self) -> Engine:
        """With recorded decode steps, and all the memory the plan gives it."""
        if self._engine is None:
            self._engine = self.make_engine()
        return self._engine

    def make_engine(self, **settings: Any) -> Engine:
        """Another engine over the same weights, which keeps nothing; the caller drops it."""
        config = EngineConfig(
            **{
                "graphs": "on",
                "max_running": max(self.scale.batches),
                "max_step_tokens": self.scale.step_tokens,
                "kv_cache_bytes": None if self.device.type == "cuda" else 2**28,
                "prompt_store_bytes": 0,
                "parking": False,
                "tile_tokens": 0,  # a step is a whole prefill
                **settings,
            }
        )
        image = self.prompt()[1][0]
        words = cast(Processor, Words())
        return Engine(self.adapter, words, config, model_path="random", image=image)

    def close_engine(self) -> None:
        self._engine = None
        free(self.device)

    def prompt(self, *, long: bool = False) -> tuple[tuple[int, ...], tuple[ImageInput, ...]]:
        """Ids and images; every prompt has the same images, which are encoded once."""
        scale, shape = self.scale, self.shape
        count, words = (
            (scale.long_images, scale.long_words) if long else (scale.images, scale.words)
        )
        side, per_image = shape.image_side_px, (shape.image_side_px // 14) ** 2
        while len(self._images) < count:
            number = len(self._images)
            pixels = np.random.default_rng(number).standard_normal((1, 3, side, side))
            tensors = {"pixel_values": pixels.astype(np.float32)}
            self._images.append(ImageInput(f"noise-{number}", tensors, per_image))
        text = np.random.default_rng(0).integers(5, shape.vocabulary, words).tolist()
        ids = [1, *([IMAGE_ID] * per_image * count), *text[1:]]
        return tuple(ids), tuple(self._images[:count])

    def requests(
        self, count: int, policy: str, *, max_tokens: int = 64, long: bool = False
    ) -> list[Request]:
        ids, images = self.prompt(long=long)
        sampling = Sampling(max_tokens=max_tokens, ignore_eos=True)
        return [
            Request(f"{policy}-{i}", ids, images, parse(policy), sampling) for i in range(count)
        ]

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, call: Callable[[], Any]) -> float:
        """Wall time of one call, device included."""
        self.wait()
        started_s = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - started_s

    def kernel_seconds(self, call: Callable[[], Any], *, repeats: int = 20) -> float:
        """Median device time of one call with cold caches, after three that warm it up.

        The device sleeps first, while the call is enqueued: launching is not its time.
        """
        for _ in range(3):
            call()
        if self.device.type != "cuda":
            return statistics.median(self.seconds(call) for _ in range(repeats))
        flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=self.device)
        marks = []
        for _ in range(repeats):
            flush.zero_()
            torch.cuda._sleep(SLEEP_CYCLES)  # type: ignore[no-untyped-call]
            first, last = _event(), _event()
            first.record()
            call()
            last.record()
            marks.append((first, last))
        self.wait()
        spent_ms: list[float] = [first.elapsed_time(last) for first, last in marks]
        return statistics.median(spent_ms) / 1000

    @contextlib.contextmanager
    def peak_bytes(self) -> Iterator[list[int]]:
        """Fills the list with the most memory taken inside, over what was taken before."""
        found: list[int] = []
        cuda = self.device.type == "cuda"
        before = torch.cuda.memory_allocated(self.device) if cuda else 0
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        yield found
        if cuda:
            found.append(torch.cuda.max_memory_allocated(self.device) - before)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def free(device: torch.device) -> None:
    """Give memory that nothing refers to back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
