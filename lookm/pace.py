"""How much work fits in a step: others wait for it, and notice a third of a second.

Learned from what prompts took. A prompt that fits runs in one piece, beside the step's other rows;
a longer one is run on, in tiles, for the rest of the step's time.
"""

from dataclasses import dataclass

from lookm.config import EngineConfig

SHARE = 0.5  # of a step's time, for prompts in one piece
LEAST_TOKENS = 64  # smaller pieces cost as much
WEIGHT = 0.3  # of what was seen last


@dataclass(slots=True)
class Pace:
    """Tokens of a tile (0: no prompt is run in tiles), seconds of a step."""

    tile_tokens: int
    step_s: float
    max_step_tokens: int
    short_tokens: int
    tokens_per_s: float | None = None

    @classmethod
    def of(cls, config: EngineConfig, device_type: str) -> "Pace":
        """A CPU's or a GPU's, but for what `config` says."""
        cuda = device_type == "cuda"
        step_ms = (50 if cuda else 100) if config.max_step_ms is None else config.max_step_ms
        tile = (2048 if cuda else 512) if config.tile_tokens is None else config.tile_tokens
        return cls(tile, step_ms / 1000, config.max_step_tokens, tile if cuda else 128)

    @property
    def step_tokens(self) -> int:
        """Prompt tokens in one piece that a step takes, and the longest prompt in one piece."""
        if not self.tile_tokens:
            return self.max_step_tokens
        return min(self.max_step_tokens, self.short_tokens)

    def tiles_in_step(self, num_layers: int) -> int:
        """Tiles of one layer that a step has time for; all, where nothing is known yet."""
        if self.tokens_per_s is None:
            return 2**31
        return max(1, int(self.step_s * self.tokens_per_s * num_layers / self.tile_tokens))

    def learn(self, num_tokens: int, spent_s: float) -> None:
        """Prompts of so many tokens took so long."""
        if num_tokens < LEAST_TOKENS or spent_s <= 0:
            return
        seen = num_tokens / spent_s
        known = self.tokens_per_s
        self.tokens_per_s = seen if known is None else (1 - WEIGHT) * known + WEIGHT * seen
        fit = int(SHARE * self.step_s * self.tokens_per_s)
        self.short_tokens = max(LEAST_TOKENS, min(fit, self.tile_tokens))
