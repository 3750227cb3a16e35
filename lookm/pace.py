"""How much work fits in a step: others wait for it, and notice a third of a second.

Learned from what prompts took. A prompt that fits runs in one piece, beside the step's other rows;
a longer one is run on, in tiles, for the rest of the step's time.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from lookm.batch import Batch
from lookm.config import EngineConfig

SHARE = 0.5  # of a step's time, for prompts in one piece
LEAST_TOKENS = 64  # smaller pieces cost as much
WEIGHT = 0.3  # of what was seen last
DECODE_STEPS = 4  # a step takes so many times one that only decodes: prompts get the rest
CPU_S, GPU_S = (0.1, 0.25), (0.03, 0.05)  # but at least, and at most


@dataclass(slots=True)
class Pace:
    """Tokens of a tile (0: no prompt is run in tiles), seconds of a step between `limits_s`."""

    tile_tokens: int
    limits_s: tuple[float, float]
    max_step_tokens: int
    short_tokens: int
    counts_tiles: bool = False  # a GPU's host is ahead of it: what it has yet to do is not timed
    tokens_per_s: float | None = None
    decode_s: float | None = None

    @classmethod
    def of(cls, config: EngineConfig, device_type: str) -> "Pace":
        """A CPU's or a GPU's, but for what `config` says."""
        cuda = device_type == "cuda"
        limits_s = GPU_S if cuda else CPU_S
        if config.max_step_ms is not None:
            limits_s = (config.max_step_ms / 1000,) * 2
        tile = (2048 if cuda else 512) if config.tile_tokens is None else config.tile_tokens
        short = tile if cuda else 128
        return cls(tile, limits_s, config.max_step_tokens, short, counts_tiles=cuda)

    @property
    def step_s(self) -> float:
        """A small multiple of what decoding takes, so that prompts get most of the time."""
        least_s, most_s = self.limits_s
        return max(least_s, min(most_s, DECODE_STEPS * (self.decode_s or 0.0)))

    @property
    def step_tokens(self) -> int:
        """Prompt tokens in one piece that a step takes, and the longest prompt in one piece."""
        if not self.tile_tokens:
            return self.max_step_tokens
        return min(self.max_step_tokens, self.short_tokens)

    def encode_s(self, batch: Batch) -> float:
        """Of a step, for images: what its decodes leave, and half of that beside other prompts."""
        left_s = max(0.0, self.step_s - (self.decode_s or 0.0) * bool(batch.decodes))
        others = any(not unit.sequence.awaits_images for unit in (*batch.prefills, *batch.long))
        return left_s / 2 if others else left_s

    def tiles_in_step(self, num_layers: int) -> int:
        """Tiles of one layer that a step has time for; all, where nothing is known yet."""
        if self.tokens_per_s is None:
            return 2**31
        return max(1, int(self.step_s * self.tokens_per_s * num_layers / self.tile_tokens))

    def pause(self, until_s: float, num_layers: int) -> Callable[[], bool]:
        """To be asked before every tile of a step but the first: whether it has to wait.

        Where another tile like the last would end further behind `until_s` than this one is before.
        """
        if self.counts_tiles:
            left = iter(range(self.tiles_in_step(num_layers) - 1))
            return lambda: next(left, None) is None
        before_s = time.monotonic()

        def is_late() -> bool:
            nonlocal before_s
            now_s = time.monotonic()
            tile_s, before_s = now_s - before_s, now_s
            return now_s + tile_s / 2 > until_s

        return is_late

    def learn_decode(self, spent_s: float) -> None:
        """A step that only decoded took so long."""
        known = self.decode_s
        self.decode_s = spent_s if known is None else (1 - WEIGHT) * known + WEIGHT * spent_s

    def learn(self, num_tokens: int, spent_s: float) -> None:
        """Prompts of so many tokens took so long."""
        if num_tokens < LEAST_TOKENS or spent_s <= 0:
            return
        seen = num_tokens / spent_s
        known = self.tokens_per_s
        self.tokens_per_s = seen if known is None else (1 - WEIGHT) * known + WEIGHT * seen
        fit = int(SHARE * self.step_s * self.tokens_per_s)
        self.short_tokens = max(LEAST_TOKENS, min(fit, self.tile_tokens))
