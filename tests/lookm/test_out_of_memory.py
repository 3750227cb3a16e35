"""Memory that runs out in a step, injected on a CPU: what it costs, and that nothing is left."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lookm import CachePolicy
from lookm.device import is_out_of_memory
from lookm.engine import Engine
from lookm.models.adapter import Adapter
from lookm.models.vision import Vision
from lookm.prefill import PromptContext
from lookm.runner import _Step
from tests.lookm.test_fuzz import POLICIES, alone, draw_case, request
from tests.lookm.tiny import answers, random_prompt, tiny_engine

LOOK = CachePolicy("look-m", keep=0.2)


class Faults:
    """Raises where `fails` says so, asked at every layer of every forward pass, and for images."""

    def __init__(self) -> None:
        self.fails: Callable[[str, Any], bool] = lambda where, what: False
        self.error: Callable[[], Exception] = lambda: torch.OutOfMemoryError("injected")
        self.num_raised = 0

    def at(self, where: str, what: Any) -> None:
        if self.fails(where, what):
            self.num_raised += 1
            raise self.error()


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    faults = Faults()

    def faulty(kind: Any, name: str, where: str) -> None:
        real = getattr(kind, name)

        def run(self: Any, what: Any, *rest: Any, **named: Any) -> Any:
            faults.at(where, what)
            return real(self, what, *rest, **named)

        monkeypatch.setattr(kind, name, run)

    faulty(_Step, "attend", "step")
    faulty(PromptContext, "attend", "prompt")
    faulty(Vision, "encode_images", "images")
    faulty(Adapter, "logits", "logits")
    return faults


def run(engine: Engine, requests: list[Any]) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Tokens and endings; invariants checked after each step."""
    for each in requests:
        engine.add(each)
    tokens: dict[str, list[int]] = {each.id: [] for each in requests}
    ended: dict[str, str] = {}
    while engine.has_work:
        for event in engine.step():
            assert event.request_id not in ended, "an event after the last one"
            if event.token_id is not None:
                tokens[event.request_id].append(event.token_id)
            if event.finish:
                ended[event.request_id] = event.finish
        engine.check()
    assert set(ended) == set(tokens)
    assert engine.stats().used_bytes == 0
    return tokens, ended


def some(count: int, policy: CachePolicy = LOOK) -> list[Any]:
    return [random_prompt(2, seed=n).request(f"r{n}", policy) for n in range(count)]


@pytest.mark.parametrize("policy", [CachePolicy(), LOOK])
def test_a_step_with_too_many_rows_is_done_in_halves_with_the_same_answers(
    faults: Faults, policy: CachePolicy
) -> None:
    expected = answers(tiny_engine(), some(8, policy))
    faults.fails = lambda where, what: where == "step" and what.layer == 1 and _rows(what) > 30
    tokens, ended = run(tiny_engine(), some(8, policy))
    assert faults.num_raised
    assert set(ended.values()) == {"length"}
    assert tokens == expected


def test_decoding_sequences_are_halved_until_they_fit(faults: Faults) -> None:
    expected = answers(tiny_engine(), some(8))
    faults.fails = lambda where, what: where == "logits" and what.shape[0] > 2
    tokens, ended = run(tiny_engine(), some(8))
    assert faults.num_raised > 10
    assert set(ended.values()) == {"length"}
    assert tokens == expected


def test_a_long_prompt_is_tried_again_in_smaller_tiles(faults: Faults) -> None:
    prompts = [random_prompt(12, seed=3).request("a", LOOK)]
    expected = answers(tiny_engine(), prompts)
    faults.fails = lambda where, what: _rows(what) > 20 if where in ("step", "prompt") else False
    tokens, _ = run(tiny_engine(tile_tokens=64), prompts)
    assert faults.num_raised == 1
    assert tokens == expected


def test_what_does_not_fit_alone_ends_and_costs_nobody_else_anything(faults: Faults) -> None:
    expected = answers(tiny_engine(), some(3))
    large = random_prompt(9, seed=9).request("large", LOOK)
    faults.fails = lambda where, what: (
        where == "images"
        and len(large.images) > 0
        and any(image.digest == large.images[0].digest for image in what)
    )
    engine = tiny_engine()
    tokens, ended = run(engine, [*some(2), large, *some(3)[2:]])
    assert ended.pop("large") == "error"
    assert faults.num_raised == 2
    assert {name: tokens[name] for name in expected} == expected
    faults.fails = lambda where, what: False
    assert run(engine, [large])[1] == {"large": "length"}


def test_a_decoding_sequence_that_does_not_fit_alone_ends(faults: Faults) -> None:
    engine = tiny_engine()
    faults.fails = lambda where, what: where == "step" and engine._totals.generated_tokens > 6
    _, ended = run(engine, some(2))
    assert set(ended.values()) == {"error"}
    faults.fails = lambda where, what: False
    assert set(run(engine, some(2))[1].values()) == {"length"}


@pytest.mark.parametrize("seed", range(3))
def test_random_faults_change_no_answer_and_leave_nothing(faults: Faults, seed: int) -> None:
    rng = random.Random(seed)
    cases = {f"r{n}": draw_case(rng) for n in range(40)}
    # Of elastic policies the least: what they take depends on the pool.
    least = {name: POLICIES[case[1]].keep_min for name, case in cases.items()}
    expected = {name: alone(case, keep=least[name]) for name, case in cases.items()}
    engine = tiny_engine(
        page_tokens=4,
        kv_cache_bytes=3 * 36 * 2 * 2 * 4 * 16 * 4,
        max_step_tokens=40,
        tile_tokens=32,
    )
    faults.fails = lambda where, what: rng.random() < 0.02
    asked = [request(name, case, least[name]) for name, case in cases.items()]
    tokens, ended = run(engine, asked)
    assert faults.num_raised > 3
    whole = [name for name in cases if ended[name] != "error"]
    assert len(whole) > len(cases) / 2
    assert {name: tokens[name] for name in whole} == {name: expected[name] for name in whole}
    faults.fails = lambda where, what: False
    again = {name: cases[name] for name in cases if ended[name] == "error"} or cases
    renamed = [request(f"again-{name}", case, least[name]) for name, case in again.items()]
    answered, _ = run(engine, renamed)
    assert answered == {f"again-{name}": expected[name] for name in again}


def test_a_fault_that_poisons_the_device_is_not_survived(faults: Faults) -> None:
    engine = tiny_engine()
    faults.fails = lambda where, what: where == "step"
    faults.error = lambda: RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run(engine, some(2))


def test_what_out_of_memory_looks_like() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    for other in ("CUDA error: device-side assert triggered", "CUBLAS_STATUS_EXECUTION_FAILED"):
        assert not is_out_of_memory(RuntimeError(other))
    assert not is_out_of_memory(ValueError("out of memory"))


def _rows(what: Any) -> int:
    return int(what.q_HTD.shape[1])
