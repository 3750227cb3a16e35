"""What a `Sampling` may ask for, and that a refusal names the field."""

import dataclasses
import math
from typing import Any

import pytest

from lookm import RequestError, Sampling
from lookm.sampling import check
from lookm.sampling.checks import RANGES
from tests.lookm.tiny import VOCABULARY, random_prompt, tiny_engine

REFUSED = [
    *[(name, bound) for name, (_, most) in RANGES.items() for bound in (most + 1,)],
    *[(name, least - 1) for name, (least, _) in RANGES.items()],
    *[(name, math.nan) for name in RANGES],
    ("repetition_penalty", 0.0),
    ("repetition_penalty", math.inf),
    ("repetition_penalty", math.nan),
    ("min_tokens", 257),
    ("stop", ("",)),
    ("stop", ("x" * 1025,)),
    ("stop", tuple("abcdefghijklmnopq")),
    ("stop_token_ids", (VOCABULARY,)),
    ("stop_token_ids", (-1,)),
    ("stop_token_ids", (1,) * 129),
    ("logit_bias", ((VOCABULARY, 1.0),)),
    ("logit_bias", ((1, 100.5),)),
    ("logit_bias", ((1, math.nan),)),
    ("logit_bias", ((1, 1.0), (1, 2.0))),
    ("logit_bias", tuple((i, 1.0) for i in range(1025))),
]


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_what_is_out_of_range_is_refused_by_name(name: Any, value: Any) -> None:
    with pytest.raises(RequestError, match=name.split("_")[0]) as refused:
        check(Sampling(**{name: value}), VOCABULARY)
    assert refused.value.param == name


def test_the_bounds_themselves_are_allowed() -> None:
    for name, bounds in RANGES.items():
        for bound in bounds:
            if math.isfinite(bound):
                check(Sampling(**{"max_tokens": 1, name: bound}), VOCABULARY)


def test_every_number_of_a_sampling_has_a_range() -> None:
    numbers = {f.name for f in dataclasses.fields(Sampling) if f.type in (int, float)}
    optional = {"seed", "logprobs"}
    assert set(RANGES) | {"repetition_penalty"} == numbers | optional


def test_the_engine_refuses_when_the_request_is_added() -> None:
    engine = tiny_engine()
    with pytest.raises(RequestError, match="ids from 0 to 95"):
        engine.add(random_prompt(0, seed=1).request("a", stop_token_ids=(96,)))
    assert not engine.has_work
