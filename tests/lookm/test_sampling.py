"""Sampling: greedy, nucleus and top-k by hand, and seeds that do not depend on the batch."""

import torch

from lookm.sampling import Sampler, keep_top, sample
from lookm.types import Sampling

LOGITS = torch.tensor([0.1, 3.0, 2.0, -1.0, 2.5])


def kept(logits):
    return torch.isfinite(logits).nonzero().flatten().tolist()


def test_temperature_zero_takes_the_largest():
    assert sample(LOGITS[None], [Sampler(Sampling(temperature=0))]) == [1]


def test_top_k_keeps_the_k_largest():
    assert kept(keep_top(LOGITS, 2, 1.0)) == [1, 4]


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    probabilities = LOGITS.softmax(-1)
    two = float(probabilities[1] + probabilities[4])
    assert kept(keep_top(LOGITS, 0, two - 1e-3)) == [1, 4]
    assert kept(keep_top(LOGITS, 0, two + 1e-3)) == [1, 2, 4]


def test_top_p_of_zero_still_keeps_the_most_likely_token():
    assert kept(keep_top(LOGITS, 0, 0.0)) == [1]


def test_draws_follow_the_distribution():
    sampler = Sampler(Sampling(temperature=1.0, seed=0))
    counts = torch.zeros(5)
    for _ in range(4000):
        counts[sampler.draw(LOGITS)] += 1
    assert torch.allclose(counts / 4000, LOGITS.softmax(-1), atol=0.03)


def test_temperature_sharpens():
    sampler = Sampler(Sampling(temperature=0.05, seed=0))
    assert {sampler.draw(LOGITS) for _ in range(50)} == {1}


def test_a_seed_gives_the_same_draws_alone_and_in_a_batch():
    seeded = Sampling(temperature=1.0, seed=7)
    alone, batched, other = Sampler(seeded), Sampler(seeded), Sampler(Sampling(temperature=1.0))
    rows = torch.stack([LOGITS, LOGITS.flip(0)])
    together = [sample(rows, [batched, other])[0] for _ in range(20)]
    assert [alone.draw(LOGITS) for _ in range(20)] == together


def test_no_seed_means_different_draws():
    first, second = (Sampler(Sampling(temperature=5.0)) for _ in range(2))
    assert [first.draw(LOGITS) for _ in range(40)] != [second.draw(LOGITS) for _ in range(40)]
