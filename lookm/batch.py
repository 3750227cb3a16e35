"""One step's work: a row for each decoding sequence, and the units of work of prompts.

A unit is an offer: what a step does not finish of it is handed out again. Knows who they belong to;
knows nothing about who runs when (`scheduler`) or how a step is computed (`runner`).
"""

from dataclasses import dataclass, field

import torch

from lookm.sequence import SequenceState


@dataclass(frozen=True, slots=True, eq=False)
class Encode:
    """Images `start:end` of a sequence's request, to be encoded in this step."""

    sequence: SequenceState
    start: int
    end: int


@dataclass(frozen=True, slots=True, eq=False)
class Prefill:
    """Tokens `start:end` of a sequence: a chunk of its prompt, or the prompt as a whole.

    After a preemption also tokens that were generated before it.
    """

    sequence: SequenceState
    start: int
    end: int

    @property
    def compresses(self) -> bool:
        """Whether the policy drops something of these tokens, which are then a whole prompt."""
        return self.start < self.sequence.num_prompt and self.sequence.compresses

    @property
    def work_tokens(self) -> int:
        """New tokens, and a sixteenth for each before them, which is read and attended to."""
        return self.end - self.start + self.start // 16

    @property
    def completes(self) -> bool:
        """Whether the sequence's next token follows from it."""
        return self.end == len(self.sequence.tokens)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One step: images first, then a row for each decoding sequence and those of each prefill.

    `long` is at most one prefill that is run on for the rest of the step's time, in tiles.
    """

    decodes: list[SequenceState] = field(default_factory=list)
    encodes: list[Encode] = field(default_factory=list)
    prefills: list[Prefill] = field(default_factory=list)
    long: list[Prefill] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return len(self.decodes) + sum(p.end - p.start for p in self.prefills)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.decodes or self.encodes or self.prefills or self.long)

    @property
    def sampled(self) -> list[SequenceState]:
        """The sequences that get a new token from this step, in row order."""
        return [*self.decodes, *(p.sequence for p in self.prefills if p.completes)]

    def sampled_rows(self) -> torch.Tensor:
        """Which packed rows those tokens come from, int64.

        Example: 2 decodes and prefills of 5 (complete) and 3 (not): rows 0, 1 and 6.
        """
        rows, end = list(range(len(self.decodes))), len(self.decodes)
        for prefill in self.prefills:
            end += prefill.end - prefill.start
            if prefill.completes:
                rows.append(end - 1)
        return torch.tensor(rows)
