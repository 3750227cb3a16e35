"""Log-probabilities against transformers' own logits, their text, and that each comes once."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from lookm import CachePolicy, Sampling
from lookm.postprocess import Postprocessor
from lookm.sampling import SampledToken, Sampler, describe, sample
from lookm.sampling.logprobs import LEAST
from tests.lookm.tiny import VOCABULARY, WordProcessor, random_prompt, tiny_engine, tiny_llava


def raw_logprobs(prompt: Any, answer: Any) -> Any:
    """Of each answer token's step, by one plain transformers forward pass, `[T, V]`."""
    ids = torch.tensor([list(prompt.ids) + answer[:-1]])
    pixels = torch.from_numpy(np.stack(prompt.pixels))
    with torch.no_grad():
        logits = tiny_llava()(input_ids=ids, pixel_values=pixels).logits[0]
    return logits[len(prompt.ids) - 1 :].log_softmax(-1)


def events_of(request: Any, *others: Any) -> Any:
    events = list(tiny_engine(kv_cache_bytes=2**23).generate([request, *others]))
    return [event for event in events if event.request_id == request.id]


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": 1.5, "seed": 3, "top_k": 5},
        {"frequency_penalty": 2.0, "repetition_penalty": 3.0, "logit_bias": ((7, 20.0),)},
        {"min_tokens": 12, "ignore_eos": False},
    ],
)
def test_they_are_the_log_softmax_of_the_models_own_logits(sampling: Any) -> None:
    prompt = random_prompt(2, seed=5)
    others = [random_prompt(n, seed=n).request(f"other {n}") for n in range(3)]
    events = events_of(prompt.request("a", logprobs=4, **sampling), *others)
    answer = [event.token_id for event in events]
    expected_TV = raw_logprobs(prompt, answer)
    for event, expected_V in zip(events, expected_TV, strict=True):
        told, (values, ids) = event.logprobs, expected_V.topk(4)
        assert told.token_id == event.token_id
        assert told.logprob == pytest.approx(float(expected_V[event.token_id]), abs=1e-4)
        assert [top.token_id for top in told.top] == ids.tolist()
        assert [top.logprob for top in told.top] == pytest.approx(values.tolist(), abs=1e-4)


def test_they_are_told_only_where_asked_and_as_many_as_asked() -> None:
    prompt = random_prompt(1, seed=2)
    asked = [prompt.request(str(n), logprobs=n) for n in (None, 0, 3, 20)]
    told = {}
    for event in tiny_engine().generate(asked):
        told.setdefault(event.request_id, event.logprobs)
    assert told["None"] is None
    assert [len(told[n].top) for n in ("0", "3", "20")] == [0, 3, 20]
    assert told["0"].logprob == told["3"].logprob == told["20"].logprob


def test_a_compressed_cache_changes_them() -> None:
    prompt = random_prompt(4, seed=5)
    full, look = (
        events_of(prompt.request("a", policy, logprobs=0))[1]
        for policy in (CachePolicy(), CachePolicy("look-m", keep=0.2))
    )
    assert full.logprobs.logprob != look.logprobs.logprob


def test_each_comes_once_and_in_order_while_text_is_held_back() -> None:
    prompt = random_prompt(1, seed=1)
    plain = [event.token_id for event in events_of(prompt.request("a"))]
    held = f" w{plain[3]} w{plain[4]} never"
    events = events_of(prompt.request("a", logprobs=0, stop=(held,)))
    assert events[3].text == ""
    assert [event.logprobs.token_id for event in events] == plain
    assert "".join(event.logprobs.token for event in events) == "".join(e.text for e in events)


def test_the_end_token_has_none() -> None:
    request = random_prompt(1, seed=1).request(
        "a", logprobs=2, ignore_eos=False, min_tokens=2, logit_bias=((2, 100.0),)
    )
    events = events_of(request)
    assert [event.finish for event in events] == [None, None, "stop"]
    assert [event.logprobs is None for event in events] == [False, False, True]


def test_what_is_impossible_is_a_number_json_can_hold() -> None:
    logits = torch.tensor([[0.0, -math.inf, 0.0]])
    choice = sample(logits, [Sampler(Sampling(logprobs=3))])[0]
    assert [value for _, value in choice.top] == pytest.approx([-math.log(2)] * 2 + [LEAST])


def test_part_of_a_character_is_told_by_its_bytes() -> None:
    pieces = {0: "é".encode()[:1], 1: b" a"}
    told = describe(SampledToken(0, -1.0, ((1, -0.5), (0, -1.0))), pieces.__getitem__)
    assert (told.token, told.bytes) == ("\ufffd", b"\xc3")
    assert [(top.token, top.bytes, top.logprob) for top in told.top] == [
        (" a", b" a", -0.5),
        ("\ufffd", b"\xc3", -1.0),
    ]


def test_no_tokenizer_is_read_where_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("read")

    monkeypatch.setattr("lookm.postprocess.Vocabulary", fail)
    postprocessor = Postprocessor(WordProcessor(), frozenset([2]), VOCABULARY)
    postprocessor.sampler(Sampling(temperature=1.0), (1,))
    assert events_of(random_prompt(0, seed=1).request("a"))
    with pytest.raises(AssertionError, match="read"):
        events_of(random_prompt(0, seed=1).request("a", logprobs=0))
