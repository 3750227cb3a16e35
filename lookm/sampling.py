"""From logits to the next token: greedy, or temperature, top-k and top-p with a seed per request.

A seeded request draws from its own generator, one draw per token, so its answer does not depend on
what else is in the batch.
"""

import torch

from lookm.types import Sampling


class Sampler:
    """The sampling state of one request."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._generator: torch.Generator | None = None
        if sampling.temperature > 0:
            self._generator = torch.Generator()
            if sampling.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(sampling.seed % 2**63)

    @property
    def greedy(self) -> bool:
        return self._generator is None

    def draw(self, logits_V: torch.Tensor) -> int:
        """One token from float32 logits `[V]`: scale, keep the top, draw by exponential race."""
        assert self._generator is not None, "greedy requests take the argmax"
        logits_V = logits_V.cpu() / self._sampling.temperature
        logits_V = keep_top(logits_V, self._sampling.top_k, self._sampling.top_p)
        noise_V = torch.empty_like(logits_V).exponential_(generator=self._generator)
        return int((logits_V.softmax(-1) / noise_V).argmax())


def keep_top(logits_V: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Set to -inf what is outside the `top_k` largest (0 = off) and the nucleus `top_p` (1 = off).

    The nucleus is the smallest set of most likely tokens whose mass reaches `top_p`; the most
    likely token always stays.
    """
    if 0 < top_k < logits_V.numel():
        threshold = logits_V.topk(top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < threshold, -torch.inf)
    if top_p < 1:
        sorted_V, order_V = logits_V.sort(descending=True)
        mass_before_V = sorted_V.softmax(-1).cumsum(-1) - sorted_V.softmax(-1)
        outside_V = mass_before_V >= top_p
        outside_V[0] = False
        logits_V = logits_V.masked_fill(
            torch.zeros_like(outside_V).scatter(0, order_V, outside_V), -torch.inf
        )
    return logits_V


def sample(logits_BV: torch.Tensor, samplers: list[Sampler]) -> list[int]:
    """The next token of each row."""
    greedy_B = logits_BV.argmax(-1).tolist()
    return [
        int(token) if sampler.greedy else sampler.draw(logits_V)
        for token, sampler, logits_V in zip(greedy_B, samplers, logits_BV, strict=True)
    ]
