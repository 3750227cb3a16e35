"""An engine's counters, which only grow."""

from dataclasses import dataclass

from lookm.batch import Batch
from lookm.sequence import SequenceState
from lookm.types import TokenEvent


@dataclass(slots=True)
class Totals:
    """Tokens of prompts and answers, the time that decoding took, and the last step (no total)."""

    prompt_tokens: int = 0
    image_tokens: int = 0
    generated_tokens: int = 0
    decode_tokens: int = 0
    decode_s: float = 0.0
    last_step_s: float = 0.0

    def account(self, batch: Batch, spent_s: float) -> None:
        """A step of `spent_s` for everyone who was in it."""
        for prefill in batch.prefills:
            prefill.sequence.clock.prefill_s += spent_s
        for sequence in batch.decodes:
            sequence.clock.decode_s += spent_s
        if batch.decodes:
            self.decode_tokens += len(batch.decodes)
            self.decode_s += spent_s

    def account_event(self, event: TokenEvent, sequence: SequenceState) -> None:
        """A token, and with the first one its prompt."""
        if event.token_id is None:
            return
        self.generated_tokens += 1
        if event.num_generated == 1:
            self.prompt_tokens += sequence.num_prompt
            self.image_tokens += sequence.report.image_tokens if sequence.report else 0
