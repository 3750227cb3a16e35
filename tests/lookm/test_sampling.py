"""Sampling: each step by hand and against transformers, their order, and seeds."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lookm import CachePolicy, Sampling
from lookm.sampling import Sampler, sample
from lookm.sampling.filters import keep_top
from lookm.sampling.noise import DeviceNoise, HostNoise, make_noise
from tests.lookm.tiny import answers, random_prompt, tiny_engine, tiny_llava

LOGITS = torch.tensor([0.1, 3.0, 2.0, -1.0, 2.5])
LOOK = CachePolicy("look-m", keep=0.2)


def tokens_of(logits_BV: Any, samplers: Any) -> Any:
    return [choice.token for choice in sample(logits_BV, samplers)]


def adjusted(
    sampling: Any, *, prompt: Any = (), answer: Any = (), end_ids: Any = (), logits: Any = LOGITS
) -> Any:
    sampler = Sampler(sampling, prompt, frozenset(end_ids))
    for token in answer:
        sampler.accept(token)
    logits = logits.clone()
    if sampler.adjusts:
        sampler.adjust(logits)
    return logits.tolist()


def kept(logits_BV: Any) -> Any:
    return [row.isfinite().nonzero().flatten().tolist() for row in logits_BV]


def one(top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, logits: Any = LOGITS) -> Any:
    return kept(keep_top(logits[None], [top_k], [top_p], [min_p]))[0]


def test_temperature_zero_takes_the_largest() -> None:
    assert tokens_of(LOGITS[None], [Sampler(Sampling())]) == [1]


def test_the_steps_come_in_their_documented_order() -> None:
    sampling = Sampling(
        repetition_penalty=2.0,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        logit_bias=((0, 7.0), (3, 1.0)),
        min_tokens=9,
    )
    got = adjusted(sampling, prompt=(0, 3), answer=(1, 1, 4), end_ids=(2,))
    assert got == pytest.approx(
        [
            0.1 / 2 + 7,  # in the prompt: repetition; then bias
            3.0 / 2 - 0.5 - 2 * 0.25,  # twice in the answer
            -math.inf,  # the end token, before min_tokens
            -1.0 * 2 + 1,  # negative logits are multiplied
            2.5 / 2 - 0.5 - 0.25,  # once in the answer
        ]
    )


def test_presence_and_frequency_do_not_see_the_prompt() -> None:
    sampling = Sampling(presence_penalty=1.0, frequency_penalty=1.0)
    assert adjusted(sampling, prompt=(0, 1, 2)) == LOGITS.tolist()
    assert adjusted(sampling, answer=(2, 2))[2] == 2.0 - 1 - 2


def test_the_repetition_penalty_is_transformers_own() -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.standard_normal(50).astype(np.float32))
    prompt, answer = rng.integers(0, 50, 20).tolist(), rng.integers(0, 50, 10).tolist()
    expected = RepetitionPenaltyLogitsProcessor(1.7)(
        torch.tensor([prompt + answer]), logits[None].clone()
    )
    got = adjusted(Sampling(repetition_penalty=1.7), prompt=prompt, answer=answer, logits=logits)
    assert got == expected[0].tolist()


def test_greedy_answers_with_a_repetition_penalty_equal_generate() -> None:
    prompt = random_prompt(2, seed=3)
    model = tiny_llava()
    model.generation_config.eos_token_id = None
    out = model.generate(
        input_ids=torch.tensor([prompt.ids]),
        pixel_values=torch.from_numpy(np.stack(prompt.pixels)),
        attention_mask=torch.ones(1, len(prompt.ids), dtype=torch.long),
        max_new_tokens=24,
        do_sample=False,
        repetition_penalty=1.4,
        pad_token_id=0,
    )
    plain = answers(tiny_engine(), [prompt.request("a", max_tokens=24)])["a"]
    asked = prompt.request("a", max_tokens=24, repetition_penalty=1.4)
    got = answers(tiny_engine(), [asked])["a"]
    assert got == out[0, len(prompt.ids) :].tolist()
    assert got != plain


def test_a_greedy_token_is_the_largest_after_bias_and_penalties() -> None:
    assert tokens_of(LOGITS[None], [Sampler(Sampling(logit_bias=((3, 100.0),)))]) == [3]
    assert tokens_of(LOGITS[None], [Sampler(Sampling(logit_bias=((1, -100.0),)))]) == [4]
    sampler = Sampler(Sampling(frequency_penalty=0.75))
    assert [tokens_of(LOGITS[None], [sampler])[0] for _ in range(4)] == [1, 4, 1, 2]


def test_one_rows_changes_touch_neither_other_rows_nor_the_logits_given() -> None:
    rows = torch.stack([LOGITS, LOGITS])
    biased = Sampler(Sampling(logit_bias=((1, -100.0),)))
    assert tokens_of(rows, [biased, Sampler(Sampling())]) == [4, 1]
    assert torch.equal(rows, torch.stack([LOGITS, LOGITS]))


def test_top_k_top_p_and_min_p_by_hand() -> None:
    p = LOGITS.softmax(-1)
    two = float(p[1] + p[4])
    assert one(top_k=2) == [1, 4]
    assert one(top_p=two - 1e-3) == [1, 4]
    assert one(top_p=two + 1e-3) == [1, 2, 4]
    assert one(top_p=0.0) == [1]
    assert one(min_p=float(p[2] / p[1]) - 1e-3) == [1, 2, 4]
    assert one(min_p=float(p[2] / p[1]) + 1e-3) == [1, 4]
    assert one(min_p=1.0) == [1]


def test_the_nucleus_is_taken_of_what_top_k_left() -> None:
    top = LOGITS[[1, 4]].softmax(-1)
    assert one(top_k=2, top_p=float(top[0]) - 1e-3) == [1]
    assert one(top_p=float(top[0]) - 1e-3) == [1, 4]


def test_equal_logits_stay_or_go_together() -> None:
    logits = torch.tensor([1.0, 2.0, 1.0, 1.0, 0.0])
    assert one(top_k=2, logits=logits) == [0, 1, 2, 3]
    assert one(top_p=0.6, logits=logits) == [0, 1, 2, 3]


@pytest.mark.parametrize("num_tokens", [40, 3000])
@pytest.mark.parametrize("scale", [0.01, 3.0])
def test_filters_of_many_rows_equal_transformers_on_each(num_tokens: Any, scale: Any) -> None:
    rng = np.random.default_rng(1)
    logits = torch.from_numpy(scale * rng.standard_normal((12, num_tokens)).astype(np.float32))
    top_k = [0, 1, 5, num_tokens, 10_000, 0, 20, 0, 7, 30, 0, 0]
    top_p = [1.0, 1.0, 0.9, 0.5, 0.99, 0.8, 0.3, 0.9, 1.0, 1.0, 0.05, 1.0]
    min_p = [0.0, 0.0, 0.0, 0.0, 0.2, 0.0, 0.0, 0.1, 0.05, 0.3, 0.9, 0.7]
    got = kept(keep_top(logits, top_k, top_p, min_p))
    for row, (k, p, m) in enumerate(zip(top_k, top_p, min_p, strict=True)):
        expected = logits[row][None]
        for warp in (
            TopKLogitsWarper(k or num_tokens),
            TopPLogitsWarper(p),
            MinPLogitsWarper(m),
        ):
            expected = warp(None, expected)
        assert got[row] == kept(expected)[0], (k, p, m)


def test_draws_follow_the_distribution() -> None:
    rows = LOGITS.expand(500, -1)
    samplers = [Sampler(Sampling(temperature=1.3, seed=i)) for i in range(500)]
    drawn = torch.tensor([tokens_of(rows, samplers) for _ in range(12)]).flatten()
    shares = torch.bincount(drawn, minlength=5) / drawn.numel()
    assert torch.allclose(shares, (LOGITS / 1.3).softmax(-1), atol=0.02)


@pytest.mark.parametrize("temperature", [5e-324, 1e-12, 0.02])
def test_a_temperature_near_zero_takes_the_largest(temperature: Any) -> None:
    assert tokens_of(LOGITS[None], [Sampler(Sampling(temperature=temperature, seed=1))]) == [1]


def test_only_what_the_filters_leave_is_drawn() -> None:
    sampler = Sampler(Sampling(temperature=50.0, top_k=2, seed=0))
    assert {tokens_of(LOGITS[None], [sampler])[0] for _ in range(60)} == {1, 4}


def test_a_seed_gives_the_same_draws_alone_and_in_a_batch() -> None:
    seeded = Sampling(temperature=1.0, top_p=0.95, seed=7)
    alone, batched, other = Sampler(seeded), Sampler(seeded), Sampler(Sampling(temperature=1.0))
    rows = torch.stack([LOGITS.flip(0), LOGITS])
    together = [tokens_of(rows, [other, batched])[1] for _ in range(30)]
    assert [tokens_of(LOGITS[None], [alone])[0] for _ in range(30)] == together
    assert len(set(together)) > 1


def test_no_seed_means_different_draws() -> None:
    first, second = (Sampler(Sampling(temperature=5.0)) for _ in range(2))
    rows = LOGITS[None].expand(2, -1)
    drawn = [tokens_of(rows, [first, second]) for _ in range(60)]
    assert [a for a, _ in drawn] != [b for _, b in drawn]


@pytest.mark.parametrize("make", [HostNoise, lambda seed: DeviceNoise(seed, torch.device("cpu"))])
def test_noise_is_exponential_and_its_seeds_alone(make: Any) -> None:
    first, again, other = make(2**64 - 1), make(2**64 - 1), make(0)
    noise_V, same_V, else_V = (torch.empty(20_000) for _ in range(3))
    for _ in range(2):
        first.fill(noise_V)
        again.fill(same_V)
        other.fill(else_V)
        assert torch.equal(noise_V, same_V)
        assert not torch.equal(noise_V, else_V)
    shares = [(noise_V > edge).float().mean().item() for edge in (0.5, 1, 3)]
    assert shares == pytest.approx([math.exp(-0.5), math.exp(-1), math.exp(-3)], abs=0.02)


def test_noise_is_made_where_the_logits_are() -> None:
    assert isinstance(make_noise(None, torch.device("cpu")), HostNoise)


def test_sampling_leaves_the_global_generators_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    tokens_of(LOGITS[None], [Sampler(Sampling(temperature=1.0))])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_a_seeded_answer_with_penalties_survives_company_and_preemption() -> None:
    def request(seed: Any, id: Any) -> Any:
        return random_prompt(3, seed=seed).request(
            id,
            LOOK if seed % 2 else CachePolicy(),
            max_tokens=40,
            temperature=1.0,
            seed=seed,
            top_p=0.95,
            frequency_penalty=0.5,
            repetition_penalty=1.2,
        )

    alone = [answers(tiny_engine(), [request(n, "a")])["a"] for n in range(6)]
    tight = tiny_engine(kv_cache_bytes=3 * 6 * 4 * 2 * 2 * 16 * 16 * 4)
    got = answers(tight, [request(n, str(n)) for n in range(6)], every=1)
    assert tight.stats().preemptions_total > 0
    assert [got[str(n)] for n in range(6)] == alone
    assert len({tuple(tokens) for tokens in alone}) == 6


def test_min_tokens_holds_back_the_end_token_and_stop_token_ids() -> None:
    prompt = random_prompt(1, seed=1)
    plain = answers(tiny_engine(), [prompt.request("a")])["a"]
    stop = {"stop_token_ids": (plain[2],), "ignore_eos": False}
    early, late = (
        list(tiny_engine().generate([prompt.request("a", min_tokens=n, **stop)])) for n in (0, 5)
    )
    assert [event.token_id for event in early] == plain[:3]
    assert (early[-1].finish, early[-1].stop_reason, early[-1].text) == ("stop", plain[2], "")
    assert len(late) > 5
    assert not {event.token_id for event in late[:5]} & {plain[2], 2}


def test_min_tokens_counts_to_the_token() -> None:
    sampler = Sampler(Sampling(min_tokens=2), end_ids=frozenset([1]))
    assert [tokens_of(LOGITS[None], [sampler])[0] for _ in range(4)] == [4, 4, 1, 1]


def test_a_stop_string_within_min_tokens_ends_nothing() -> None:
    prompt = random_prompt(1, seed=1)
    plain = answers(tiny_engine(), [prompt.request("a")])["a"]
    again = plain.index(plain[2], 3)
    for min_tokens, end in ((2, 2), (3, again)):
        asked = prompt.request("a", stop=(f" w{plain[2]}",), min_tokens=min_tokens)
        events = list(tiny_engine().generate([asked]))
        assert len(events) == end + 1
        assert "".join(e.text for e in events) == "".join(f" w{t}" for t in plain[:end])


def test_the_models_end_token_stops_without_a_reason_unless_ignored() -> None:
    ends = {"logit_bias": ((2, 100.0),)}
    prompt = random_prompt(0, seed=1)
    events = list(tiny_engine().generate([prompt.request("a", ignore_eos=False, **ends)]))
    assert [(e.token_id, e.finish, e.stop_reason) for e in events] == [(2, "stop", None)]
    assert answers(tiny_engine(), [prompt.request("a", max_tokens=3, **ends)])["a"] == [2, 2, 2]
