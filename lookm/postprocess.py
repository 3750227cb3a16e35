"""The loop's third verb: a chosen token becomes an event, and an answer ends where it ends.

Decides finish reasons and makes what a request's answer needs on its way (`Sampler`, grammar,
`Detokenizer` with its `StopStrings`, which cut the text). Knows nothing about pages or who runs.
"""

import functools
from collections.abc import Callable
from dataclasses import replace

from lookm.detokenize import Detokenizer
from lookm.grammar.client import Grammars
from lookm.grammar.matcher import Vocabulary
from lookm.models.processor import Processor
from lookm.sampling import SampledToken, Sampler, check, describe
from lookm.sequence import SequenceState
from lookm.types import FinishReason, Sampling, TokenEvent, TokenLogprob


class Postprocessor:
    """Turns tokens into events for one model: its tokenizer, its end tokens, its `num_logits`."""

    def __init__(self, processor: Processor, eos_ids: frozenset[int], num_logits: int) -> None:
        self._processor = processor
        self._eos_ids = eos_ids
        self._num_logits = num_logits
        self.grammars = Grammars(lambda: processor.tokenizer_json, eos_ids)

    def sampler(self, sampling: Sampling, prompt_ids: tuple[int, ...]) -> Sampler:
        """A new request's sampler. Raises `RequestError` for what cannot be sampled."""
        check(sampling, self._num_logits)
        eos_ids = frozenset[int]() if sampling.ignore_eos else self._eos_ids
        structure = sampling.structure
        return Sampler(
            sampling,
            prompt_ids,
            end_ids=eos_ids.union(sampling.stop_token_ids),
            grammar=None if structure is None else self.grammars.open(structure),
        )

    def detokenizer(self, sampling: Sampling) -> Detokenizer:
        """A new request's detokenizer."""
        return Detokenizer(self._processor.decode, sampling.stop, sampling.min_tokens)

    def accept(self, sequence: SequenceState, choice: SampledToken) -> TokenEvent:
        """Add a chosen token to its sequence. The event has a `finish` where the answer ends."""
        sampler, detokenizer = sequence.sampler, sequence.detokenizer
        if sampler.failure is not None:
            return self.end(sequence, "error", error=sampler.failure)
        token = choice.token
        sequence.tokens.append(token)
        at_end = token in sampler.end_ids
        at_limit = sequence.num_generated >= sampler.sampling.max_tokens
        text = "" if at_end else detokenizer.push(token)
        if at_end or at_limit or sampler.complete:
            text += detokenizer.finish()
        finish: FinishReason | None = "length" if at_limit else None
        if at_end or detokenizer.stopped or sampler.complete:
            finish = "stop"
        by_id = token if at_end and token in sampler.sampling.stop_token_ids else None
        return TokenEvent(
            request_id=sequence.request.id,
            token_id=token,
            text=text,
            num_generated=sequence.num_generated,
            finish=finish,
            cache=sequence.report if finish or sequence.num_generated == 1 else None,
            timing=sequence.clock.timing() if finish else None,
            logprobs=None if at_end else self._logprobs(choice),
            stop_reason=detokenizer.stopped_by if by_id is None else by_id,
            positions=sequence.positions if finish else None,
        )

    def end(
        self,
        sequence: SequenceState,
        finish: FinishReason,
        *,
        text: str = "",
        error: str | None = None,
    ) -> TokenEvent:
        """The last event of an answer that ends without a new token."""
        return TokenEvent(
            request_id=sequence.request.id,
            token_id=None,
            text=text,
            num_generated=sequence.num_generated,
            finish=finish,
            cache=sequence.report,
            timing=sequence.clock.timing(),
            error=error,
            positions=sequence.positions if finish == "stop" else None,
        )

    def end_structured(self, sequence: SequenceState) -> TokenEvent | None:
        """The last event of an answer whose structure says so between two tokens: it is none, it
        cannot be followed any further, or it turns out to be whole. Else None.
        """
        grammar = sequence.sampler.grammar
        if grammar is None:
            return None
        if grammar.refusal is not None:
            refusal = grammar.refusal
            event = self.end(sequence, "error", error=str(refusal))
            return replace(event, refused=type(refusal).__name__, param=refusal.param)
        if grammar.failure is not None:
            return self.end(sequence, "error", error=grammar.failure)
        if grammar.complete:
            return self.end(sequence, "stop", text=sequence.detokenizer.finish())
        return None

    def _logprobs(self, choice: SampledToken) -> TokenLogprob | None:
        if choice.logprob is None:
            return None
        return describe(choice, self._bytes_of)

    @functools.cached_property
    def _bytes_of(self) -> Callable[[int], bytes]:
        """What a token adds to the text."""
        vocabulary = Vocabulary(self._processor.tokenizer_json, self._eos_ids)
        if vocabulary.tokens is None:
            return lambda token: self._processor.decode([token]).encode()
        return vocabulary.bytes_of
