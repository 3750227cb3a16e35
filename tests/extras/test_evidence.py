"""The real language model of `lookm eval text`, briefly: it is read right, and choices matter."""

from collections.abc import Sequence
from functools import cache

import pytest
import torch

from lookm import compressing
from lookm.eval import text
from lookm.models.language import SMOLLM, LanguageModel

pytestmark = [pytest.mark.extras, pytest.mark.timeout(600)]  # unpacking the weights: 20 s

LENGTHS = text.Lengths(prompt=400, answer=24)


@cache
def model() -> LanguageModel:
    return LanguageModel.load(SMOLLM)


def nll(policies: Sequence[str], num_texts: int = 3) -> dict[str, float]:
    texts = dict(list(text.read_texts(text.TEXTS / "development").items())[:num_texts])
    marks = list(text.study(model(), texts, policies, LENGTHS))
    return {
        policy: sum(mark.nll for mark in marks if mark.policy == policy) / num_texts
        for policy in policies
    }


def test_english_is_likely_and_what_attention_chooses_is_worth_more_than_chance() -> None:
    found = nll(["full", "h2o@0.2", "random@0.2"])
    assert 0.5 < found["full"] < 3.5
    assert found["full"] < found["h2o@0.2"] < found["random@0.2"] - 0.1


def test_a_compressed_cache_of_transformers_scores_the_same() -> None:
    (name, words), *_ = text.read_texts(text.TEXTS / "development").items()
    ids = model().encode(words)[:424]
    (mark,) = text.study(model(), {name: words}, ["snapkv@0.3"], LENGTHS)
    plain, nats = model()._model, []
    with torch.no_grad(), compressing(plain, "snapkv@0.3", text.marked(400)) as kept:
        logits = plain(torch.tensor([ids[:400]]), past_key_values=kept).logits[0, -1]
        for token in ids[400:]:
            nats.append(-float(logits.log_softmax(0)[token]))
            logits = plain(torch.tensor([[token]]), past_key_values=kept).logits[0, -1]
    assert mark.nll == pytest.approx(sum(nats) / len(nats), abs=1e-3)
