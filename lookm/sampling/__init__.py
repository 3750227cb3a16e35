"""From logits to the next token of each request, in a fixed order of steps.

    raw logits ── log-probabilities are read here, before anything changes them
     1. repetition_penalty       prompt and answer: divide positive, multiply negative (as HF)
     2. presence, frequency      answer: subtract once, and once per occurrence (as OpenAI)
     3. logit_bias               add
     4. structure                what the grammar does not allow: -inf
     5. min_tokens               end tokens: -inf until then
    temperature 0: the largest, done
     6. temperature              divide
     7. top_k, top_p, min_p      each over what the one before left (as HF)
     8. draw                     with the request's own generator

Rows that are plainly greedy cost one argmax for the whole batch. Knows nothing about text, queues
or how a grammar works.
"""

from lookm.sampling.checks import check
from lookm.sampling.logprobs import SampledToken, describe
from lookm.sampling.sampler import Grammar, Sampler, sample

__all__ = ["Grammar", "SampledToken", "Sampler", "check", "describe", "sample"]
