"""One request's state on its way through the engine.

    tokens   [ prompt ............ | generated ... ]
                                     ^ num_prompt
             [ seen ...................... | todo ]     seen tokens have been through the model
    kept_L   rows in the cache, per layer: equal to `seen` at full cache, fewer after a look

Knows nothing about who runs when (`scheduler`) or how a step is computed (`runner`).
"""

import time
from dataclasses import dataclass, field
from typing import Any

import torch

from lookm.cache import SequenceCache
from lookm.cache.table import Int64
from lookm.detokenize import Detokenizer
from lookm.elastic import Elastic
from lookm.kept import KeptPositions
from lookm.look import PromptLook
from lookm.models.inputs import EmbeddedPrompt
from lookm.models.tiles import TiledForward
from lookm.policy import Recipe
from lookm.sampling import Sampler
from lookm.store import Capture, Prefix
from lookm.types import CachePolicy, CacheReport, Request, Timing

PARTS = 4  # of a tile, for a prompt that ran out of memory


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


@dataclass(frozen=True, slots=True, eq=False)
class TakenOver:
    """What a sequence goes on from: `num_tokens` of its prompt are `rows_L` rows already.

    `bound_L` is the rows its whole prompt has at most, with these. The first `num_compressed`
    tokens are no longer a row each; `report` is what was kept of them. `parked` is where it all
    came from.
    """

    num_tokens: int
    num_compressed: int
    rows_L: Int64
    bound_L: Int64
    report: CacheReport
    parked: Any


@dataclass(slots=True, eq=False)
class SequenceState:
    """A request on its way through the engine.

    `bound_L` is the rows its prompt keeps in each layer at most. Of its first `num_together` tokens
    some see later ones: they are computed, or taken over, as one. `features` are those of its first
    images, as they are encoded; `embedded` lives from then to the last prefill step, and so does
    the `look` of a prompt that is compressed. `keys` name the prompt's blocks; `prefix` is what the
    store had of it, and `capture` takes the rest there, while it is prefilled. `taken` is what it
    has from a parked conversation, and `job` a long prefill that is under way. `alone`: its prompt
    ran out of memory beside others. An `elastic` one is at its lowest level until it starts.
    Generated token i has RoPE position `next_pos + i`.
    """

    request: Request
    recipe: Recipe
    bound_L: Int64
    cache: SequenceCache
    sampler: Sampler
    detokenizer: Detokenizer
    tokens: list[int]
    num_together: int = 0
    seen: int = 0
    features: list[torch.Tensor] = field(default_factory=list)
    embedded: EmbeddedPrompt | None = None
    look: PromptLook | None = None
    keys: list[bytes] = field(default_factory=list)
    taken: TakenOver | None = None
    searched: int = -1
    job: TiledForward | None = None
    prefix: Prefix | None = None
    capture: Capture | None = None
    next_pos: int = 0
    alone: bool = False
    elastic: Elastic | None = None
    report: CacheReport | None = None
    positions: KeptPositions | None = None
    clock: Clock = field(default_factory=Clock)

    @property
    def num_prompt(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.num_prompt

    @property
    def asked(self) -> CachePolicy:
        """The policy of its request, of which `recipe` may be a level."""
        return self.elastic.asked.policy if self.elastic else self.recipe.policy

    @property
    def undecided(self) -> bool:
        """Whether how much it keeps is still to be decided."""
        return self.elastic is not None and not self.elastic.settled

    @property
    def todo(self) -> int:
        """Tokens that have not been through the model."""
        return len(self.tokens) - self.seen

    @property
    def compresses(self) -> bool:
        """Whether its policy will drop anything of the prompt, or of what is new in it."""
        if self.taken is None:
            return bool((self.bound_L < self.num_prompt).any())
        new_L = self.taken.bound_L - self.taken.rows_L
        return bool((new_L < self.num_prompt - self.taken.num_tokens).any())

    @property
    def num_taken(self) -> int:
        """Tokens at its beginning that are rows already: where its prefill starts."""
        return self.taken.num_tokens if self.taken else 0

    @property
    def num_known(self) -> int:
        """Tokens at its beginning that were computed before, here or by another."""
        return self.prefix.num_tokens if self.prefix else self.num_taken

    @property
    def max_rows_L(self) -> Int64:  # noqa: N802 shapes live in names
        """The rows that its prompt has in each layer at most."""
        return self.taken.bound_L if self.taken else self.bound_L

    @property
    def causal(self) -> bool:
        """Whether its tokens see only those before them."""
        return self.num_together == 0

    @property
    def reuses(self) -> bool:
        """Whether its prompt may begin with what is known. Sums need every row of a causal one."""
        return self.num_together < self.num_prompt and (self.causal or not self.compresses)

    @property
    def indivisible(self) -> bool:
        """Whether its next unit of work is its prompt as a whole, never prefilled in chunks.

        Tokens that were generated before a preemption come after it, and in chunks.
        """
        return self.prefilling and (self.compresses or not self.causal)

    @property
    def prefilling(self) -> bool:
        """Whether its prompt is on its way through the model."""
        return self.seen < self.num_prompt

    @property
    def num_unencoded(self) -> int:
        """Images that must be encoded before its prompt can be prefilled."""
        embedded = self.embedded is not None
        return 0 if embedded else len(self.request.images) - len(self.features)

    @property
    def awaits_images(self) -> bool:
        """Whether its prompt cannot go on before images are encoded."""
        return self.prefilling and self.num_unencoded > 0

    @property
    def decoding(self) -> bool:
        """Whether the next step runs just this sequence's newest generated token."""
        return self.todo == 1 and self.seen >= self.num_prompt

    @property
    def awaits_mask(self) -> bool:
        """Whether what its answer may say next is still being worked out, in another process."""
        return not self.sampler.ready

    def pos_of(self, index: int) -> int:
        """RoPE position of the generated token `tokens[index]`."""
        return self.next_pos + index - self.num_prompt

    def rows_when_caught_up(self) -> Int64:
        """Rows per layer once every present token is in the cache: what admission reserves."""
        replayed = len(self.tokens) - self.num_prompt
        rows_L: Int64 = self.max_rows_L + replayed
        return rows_L

    def take(self, level: int) -> None:
        """Keep what an elastic sequence keeps at a level; another may be gone on from there."""
        assert self.elastic is not None, "only what is elastic has levels"
        self.elastic.level = level
        self.recipe, self.bound_L = self.elastic.at(level)
        self.searched = -1

    def end_prefill(self) -> None:
        """Forget what only the prompt's prefill needed."""
        self.features.clear()
        self.embedded = None
        self.look = None
        self.job = None
        if self.capture is not None:
            self.capture.close()
        self.capture = None
        if self.prefix is not None:
            self.prefix.release()
        self.prefix = None

    def rewind(self) -> None:
        """Forget everything computed; the tokens stay and will be computed again."""
        self.cache.release()
        self.end_prefill()
        self.seen = 0
