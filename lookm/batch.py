"""One request's state (`Sequence`) and one step's work (`Batch`).

    tokens   [ prompt ............ | generated ... ]
                                     ^ num_prompt
             [ seen ...................... | todo ]     seen tokens have been through the model
    kept_L   rows in the cache, per layer: equal to `seen` at full cache, fewer after a look

Knows nothing about who runs when (`scheduler`) or how a step is computed (`runner`).
"""

import time
from dataclasses import dataclass, field

import torch

from lookm.cache import SequenceCache
from lookm.cache.table import Int64
from lookm.detokenize import Detokenizer
from lookm.models.inputs import EmbeddedPrompt
from lookm.policy import Recipe
from lookm.sampling import Sampler
from lookm.types import CacheReport, Request, Timing


@dataclass(slots=True)
class Clock:
    """When a request arrived, started and spent its time; monotonic seconds."""

    arrived_s: float = field(default_factory=time.monotonic)
    started_s: float | None = None
    encode_s: float = 0.0
    prefill_s: float = 0.0
    compress_s: float = 0.0
    decode_s: float = 0.0

    def start(self) -> None:
        """Note the first time the request runs."""
        if self.started_s is None:
            self.started_s = time.monotonic()

    def timing(self) -> Timing:
        started_s = time.monotonic() if self.started_s is None else self.started_s
        return Timing(
            queue_s=started_s - self.arrived_s,
            encode_s=self.encode_s,
            prefill_s=self.prefill_s,
            compress_s=self.compress_s,
            decode_s=self.decode_s,
        )


@dataclass(slots=True, eq=False)
class Sequence:
    """A request on its way through the engine.

    `bound_L` is the rows its prompt keeps in each layer; `one_go` says that its tokens see later
    ones, so that the prompt cannot be cut. `embedded` lives from the first to the last prefill
    step; generated token i has RoPE position `next_pos + i`.
    """

    request: Request
    recipe: Recipe
    bound_L: Int64
    cache: SequenceCache
    sampler: Sampler
    detokenizer: Detokenizer
    tokens: list[int]
    one_go: bool = False
    seen: int = 0
    embedded: EmbeddedPrompt | None = None
    next_pos: int = 0
    report: CacheReport | None = None
    clock: Clock = field(default_factory=Clock)

    @property
    def num_prompt(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.num_prompt

    @property
    def todo(self) -> int:
        """Tokens that have not been through the model."""
        return len(self.tokens) - self.seen

    @property
    def compresses(self) -> bool:
        """Whether a look at the prompt will drop anything."""
        return bool((self.bound_L < self.num_prompt).any())

    @property
    def whole(self) -> bool:
        """Whether the prompt is prefilled in one go, never in chunks."""
        return self.one_go or self.compresses

    @property
    def decoding(self) -> bool:
        """Whether the next step runs just this sequence's newest generated token."""
        return self.todo == 1 and self.seen >= self.num_prompt

    def pos_of(self, index: int) -> int:
        """RoPE position of the generated token `tokens[index]`."""
        return self.next_pos + index - self.num_prompt

    def rows_when_caught_up(self) -> Int64:
        """Rows per layer once every present token is in the cache: what admission reserves."""
        replayed = len(self.tokens) - self.num_prompt
        rows_L: Int64 = self.bound_L + replayed
        return rows_L

    def rewind(self) -> None:
        """Forget everything computed; the tokens stay and will be computed again."""
        self.cache.release()
        self.seen = 0
        self.embedded = None


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Tokens `start:end` of a sequence, to be prefilled in this step."""

    sequence: Sequence
    start: int
    end: int

    @property
    def looks(self) -> bool:
        """Whether this segment is a whole prompt that is compressed as it is prefilled."""
        return self.start == 0 and self.sequence.compresses

    @property
    def completes(self) -> bool:
        """Whether the sequence's next token follows from this segment."""
        return self.end == len(self.sequence.tokens)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One step: a row for each decoding sequence, then the rows of each prefill segment."""

    decodes: list[Sequence]
    segments: list[Segment]

    @property
    def num_tokens(self) -> int:
        return len(self.decodes) + sum(s.end - s.start for s in self.segments)

    @property
    def sampled(self) -> list[Sequence]:
        """The sequences that get a new token from this step, in row order."""
        return [*self.decodes, *(s.sequence for s in self.segments if s.completes)]

    def sampled_rows(self) -> torch.Tensor:
        """Which packed rows those tokens come from, int64.

        Example: 2 decodes and segments of 5 (complete) and 3 (not): rows 0, 1 and 6.
        """
        rows, end = list(range(len(self.decodes))), len(self.decodes)
        for segment in self.segments:
            end += segment.end - segment.start
            if segment.completes:
                rows.append(end - 1)
        return torch.tensor(rows)
