"""One request's sampling state (`Sampler`), and one step for a batch of them (`sample`).

A request draws from its own generator, one vector of noise per token, so a seeded answer does not
depend on what else is in the batch, nor on preemption.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import torch

from lookm.errors import QueueFullError, RequestError
from lookm.sampling.filters import keep_top
from lookm.sampling.logprobs import SampledToken, choices
from lookm.sampling.noise import Noise, make_noise
from lookm.types import Sampling

COLDEST = 1e-30  # below, logits overflow float32; it is greedy long before


class Grammar(Protocol):
    """What a structured answer may say next. Implemented in `lookm.grammar`."""

    @property
    def ready(self) -> bool:
        """Whether `mask` may be called: what may follow the newest token is known."""
        ...

    @property
    def refusal(self) -> RequestError | QueueFullError | None:
        """Why there is no such grammar, or it cannot be followed on; it is never ready then."""
        ...

    @property
    def complete(self) -> bool:
        """Whether the answer has its form and nothing can follow."""
        ...

    @property
    def failure(self) -> str | None:
        """Why the grammar had to give up; nothing is masked from then on."""
        ...

    def mask(self, logits_V: torch.Tensor) -> None:
        """Set to -inf, in place, what must not come next."""
        ...

    def advance(self, token: int) -> None:
        """Note the token that came."""
        ...

    def close(self) -> None:
        """Nobody follows it any more."""
        ...


class Sampler:
    """The sampling state of one request. `end_ids` are the tokens that may end its answer."""

    def __init__(
        self,
        sampling: Sampling,
        prompt_ids: Sequence[int] = (),
        end_ids: frozenset[int] = frozenset(),
        grammar: Grammar | None = None,
    ) -> None:
        self.sampling = sampling
        self.grammar = grammar
        self.end_ids = end_ids
        self._prompt_ids = frozenset(prompt_ids if sampling.repetition_penalty != 1 else ())
        self._counts: Counter[int] = Counter()
        self._num_generated = 0
        self._noise: Noise | None = None

    @property
    def hot(self) -> bool:
        """Whether tokens are drawn rather than the largest taken."""
        return self.sampling.temperature > 0

    @property
    def adjusts(self) -> bool:
        """Whether the next logits must go through `adjust`."""
        params = self.sampling
        return (
            params.repetition_penalty != 1
            or params.presence_penalty != 0
            or params.frequency_penalty != 0
            or bool(params.logit_bias)
            or self.grammar is not None
            or self._num_generated < params.min_tokens
        )

    @property
    def ready(self) -> bool:
        """Whether the next token can be chosen: of a structured answer, a moment after the last."""
        return self.grammar is None or self.grammar.ready

    @property
    def complete(self) -> bool:
        """Whether a structured answer has its form, so that nothing can follow."""
        return self.grammar is not None and self.grammar.complete

    @property
    def failure(self) -> str | None:
        """Why a structured answer cannot go on; its newest token is then void."""
        return None if self.grammar is None else self.grammar.failure

    def adjust(self, logits_V: torch.Tensor) -> None:
        """Steps 1 to 5 of the package's list, in place."""
        self._penalize(logits_V)
        if self.sampling.logit_bias:
            ids, biases = zip(*self.sampling.logit_bias, strict=True)
            logits_V[list(ids)] += torch.tensor(biases, device=logits_V.device)
        if self.grammar is not None:
            self.grammar.mask(logits_V)
        if self._num_generated < self.sampling.min_tokens:
            self._suppress_end(logits_V)

    def accept(self, token: int) -> None:
        """Note the token that was chosen."""
        self._counts[token] += 1
        self._num_generated += 1
        if self.grammar is not None:
            self.grammar.advance(token)

    def close(self) -> None:
        """No token will be chosen any more."""
        if self.grammar is not None:
            self.grammar.close()

    def fill_noise(self, noise_V: torch.Tensor) -> None:
        """The next draws from the exponential distribution, into a float32 tensor."""
        assert self.hot, "greedy requests take the largest"
        if self._noise is None:
            self._noise = make_noise(self.sampling.seed, noise_V.device)
        self._noise.fill(noise_V)

    def _penalize(self, logits_V: torch.Tensor) -> None:
        params, device = self.sampling, logits_V.device
        if params.repetition_penalty != 1:
            seen = self._prompt_ids | self._counts.keys()
            ids = torch.tensor([i for i in seen if i < logits_V.numel()], device=device)
            values = logits_V[ids]
            factor = params.repetition_penalty
            logits_V[ids] = torch.where(values > 0, values / factor, values * factor)
        if self._counts and (params.presence_penalty or params.frequency_penalty):
            ids = torch.tensor(list(self._counts), device=device)
            counts = torch.tensor(list(self._counts.values()), device=device)
            logits_V[ids] -= params.presence_penalty + params.frequency_penalty * counts

    def _suppress_end(self, logits_V: torch.Tensor) -> None:
        """Ban the end tokens, unless the structure allows nothing else."""
        ids = [token for token in self.end_ids if token < logits_V.numel()]
        before = logits_V[ids]
        logits_V[ids] = -torch.inf
        if self.grammar is not None and bool((logits_V == -torch.inf).all()):
            logits_V[ids] = before


def sample(logits_BV: torch.Tensor, samplers: list[Sampler]) -> list[SampledToken]:
    """The next token of each row of float32 logits, noted in its sampler."""
    changed_BV = logits_BV
    if any(sampler.adjusts for sampler in samplers):
        changed_BV = logits_BV.clone()
        for logits_V, sampler in zip(changed_BV, samplers, strict=True):
            if sampler.adjusts:
                sampler.adjust(logits_V)
    tokens: list[int] = changed_BV.argmax(-1).tolist()
    hot = [row for row, sampler in enumerate(samplers) if sampler.hot]
    if hot:
        drawn = draw(changed_BV[hot], [samplers[row] for row in hot])
        for row, token in zip(hot, drawn, strict=True):
            tokens[row] = token
    chosen = choices(logits_BV, tokens, [sampler.sampling.logprobs for sampler in samplers])
    for sampler, token in zip(samplers, tokens, strict=True):  # last: what failed is done again
        sampler.accept(token)
    return chosen


def draw(logits_BV: torch.Tensor, samplers: list[Sampler]) -> list[int]:
    """One token from each row: steps 6 to 8, the draw as a race of exponential clocks.

    Token j wins with probability softmax(logits)_j where its p_j / noise_j is the largest. Unlike a
    walk along the cumulated probabilities, a rounding error elsewhere in the row changes nothing.
    """
    params = [sampler.sampling for sampler in samplers]
    heat = torch.tensor([each.temperature for each in params], device=logits_BV.device)
    logits_BV = keep_top(
        logits_BV / heat.clamp_min(COLDEST)[:, None],
        [each.top_k for each in params],
        [each.top_p for each in params],
        [each.min_p for each in params],
    )
    noise_BV = torch.empty_like(logits_BV)
    for noise_V, sampler in zip(noise_BV, samplers, strict=True):
        sampler.fill_noise(noise_V)
    clock_BV = noise_BV.clamp_min_(torch.finfo(torch.float32).tiny).log_()
    winners: list[int] = (logits_BV - clock_BV).argmax(-1).tolist()
    return winners
