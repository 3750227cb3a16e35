"""Steps that run out of memory: done again in smaller parts; who does not fit alone, ends.

Decoding sequences are halved until they fit: rows that a failed try wrote are written again. A
prompt begins again, by itself and in smaller pieces (`SequenceState.alone`); where that fails too,
it ends. Faults that are not about memory are the worker's end. Knows the runner and the scheduler;
nothing about events.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from lookm.batch import Batch, Encode, Prefill
from lookm.device import is_out_of_memory
from lookm.runner import Runner
from lookm.sampling import SampledToken
from lookm.scheduler import Scheduler
from lookm.sequence import SequenceState

logger = logging.getLogger(__name__)

TOO_LARGE = (
    "The device has not enough memory for this request. Shorten it, keep less of the cache, or "
    "send it again when the server is less busy."
)


FAULTS = (RuntimeError, MemoryError)  # where what `is_out_of_memory` knows is found


@dataclass(slots=True)
class Outcome:
    """Chosen tokens, and who did not fit."""

    chosen: list[tuple[SequenceState, SampledToken]] = field(default_factory=list)
    too_large: list[SequenceState] = field(default_factory=list)

    def __iadd__(self, other: "Outcome") -> "Outcome":
        self.chosen += other.chosen
        self.too_large += other.too_large
        return self


class Recovery:
    """A `Runner` whose steps survive that memory is short."""

    def __init__(self, runner: Runner, scheduler: Scheduler) -> None:
        self._runner = runner
        self._scheduler = scheduler

    def run(self, batch: Batch) -> Outcome:
        """Compute a step; prompts that failed before have a forward pass of their own."""
        alone = [prefill for prefill in batch.prefills if prefill.sequence.alone]
        others = [prefill for prefill in batch.prefills if not prefill.sequence.alone]
        outcome = self._run(Batch(batch.decodes, prefills=others))
        for prefill in alone:
            outcome += self._run(Batch(prefills=[prefill]))
        return outcome

    def advance(self, prefill: Prefill, pause: Callable[[], bool]) -> tuple[bool, Outcome]:
        """Run a long prefill on; whether it has come to its end."""
        try:
            choices = self._runner.advance(prefill, pause)
        except FAULTS as error:
            return False, self._begin_again([prefill.sequence], error)
        return choices is not None, Outcome([(prefill.sequence, each) for each in choices or ()])

    def prepare(
        self, unit: Encode | Prefill, pause: Callable[[], bool]
    ) -> tuple[Prefill | None, Outcome]:
        """As `Runner.prepare`."""
        try:
            return self._runner.prepare(unit, pause), Outcome()
        except FAULTS as error:
            return None, self._begin_again([unit.sequence], error)

    def _run(self, batch: Batch) -> Outcome:
        if not batch.num_tokens:
            return Outcome()
        try:
            choices = self._runner.run(batch)
        except FAULTS as error:
            prompts = [prefill.sequence for prefill in batch.prefills]
            outcome = self._begin_again(prompts, error)
            decodes = batch.decodes
            if prompts:
                outcome += self._run(Batch(decodes))
            elif len(decodes) == 1:
                outcome.too_large += decodes
            else:
                half = len(decodes) // 2
                outcome += self._run(Batch(decodes[:half]))
                outcome += self._run(Batch(decodes[half:]))
            return outcome
        return Outcome(list(zip(batch.sampled, choices, strict=True)))

    def _begin_again(self, prompts: list[SequenceState], error: Exception) -> Outcome:
        """Each once more, if that is the first time. Raises an `error` about anything else."""
        if not is_out_of_memory(error):
            raise error
        logger.warning("a step ran out of memory and is done again in smaller parts: %s", error)
        error.__traceback__ = None  # its frames hold what is to be freed
        self._runner.features.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        outcome = Outcome()
        for sequence in prompts:
            if sequence.alone:
                outcome.too_large.append(sequence)
            else:
                sequence.alone = True
                self._scheduler.begin_again(sequence)
        return outcome
