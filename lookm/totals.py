"""An engine's counters, which only grow."""

from dataclasses import dataclass

from lookm.batch import Batch


@dataclass(slots=True)
class Totals:
    """Tokens of prompts and answers, and the time that decoding took."""

    prompt_tokens: int = 0
    image_tokens: int = 0
    generated_tokens: int = 0
    decode_tokens: int = 0
    decode_s: float = 0.0

    def account(self, batch: Batch, spent_s: float) -> None:
        """A step of `spent_s` for everyone who was in it."""
        for prefill in batch.prefills:
            prefill.sequence.clock.prefill_s += spent_s
        for sequence in batch.decodes:
            sequence.clock.decode_s += spent_s
        if batch.decodes:
            self.decode_tokens += len(batch.decodes)
            self.decode_s += spent_s
