"""Structured answers fit whatever the model prefers, end where they may, and refuse clearly."""

import enum
import json
import re
from typing import Any

import numpy as np
import pydantic
import pytest
import torch

from lookm import CachePolicy, RequestError, Sampling
from lookm.grammar.client import Grammars
from lookm.grammar.matcher import Vocabulary
from lookm.models.processor import Processor
from lookm.postprocess import Postprocessor
from lookm.sampling import Sampler, sample
from lookm.types import Structure
from tests.lookm import tiny
from tests.lookm.ascii_tokenizer import END, AsciiProcessor
from tests.lookm.grammars import opened
from tests.lookm.tiny import VOCABULARY, random_prompt, tiny_engine

ANY = Structure("json_object")


class Colour(enum.Enum):
    RED, BLUE = "red", "blue"


class Part(pydantic.BaseModel, extra="forbid"):
    name: str = pydantic.Field(max_length=6)
    colours: list[Colour] = pydantic.Field(max_length=3)


class Answer(pydantic.BaseModel, extra="forbid"):
    count: int = pydantic.Field(ge=0, le=99)
    sure: bool
    part: Part
    note: str | None = pydantic.Field(max_length=4)


def schema_of(model: Any) -> Any:
    return Structure("json_schema", json.dumps(model.model_json_schema()))


SHORT = Structure(
    "json_schema",
    '{"type": "object", "properties": {"a": {"enum": [1, 22, "x"]}}, "required": ["a"],'
    ' "additionalProperties": false}',
)


@pytest.fixture
def engine_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(tiny, "WordProcessor", AsciiProcessor)
    return tiny_engine


@pytest.fixture(scope="module")
def demo() -> Any:
    processor = Processor.load("llava-demo")
    return processor._tokenizer, Grammars(lambda: processor.tokenizer_json, [END])


def random_answer(
    demo: Any, structure: Any, seed: Any, *, max_tokens: int = 400, **sampling: Any
) -> Any:
    """Tokens of a model that prefers random ones; None where it did not come to an end."""
    tokenizer, grammars = demo
    asked = Sampling(max_tokens=max_tokens, structure=structure, seed=seed, **sampling)
    sampler = Sampler(asked, (), frozenset([END]), opened(grammars, structure))
    rng = np.random.default_rng(seed)
    ids = []
    while len(ids) < max_tokens:
        logits = 4 * rng.standard_normal((1, len(tokenizer))).astype(np.float32)
        token = sample(torch.from_numpy(logits), [sampler])[0].token
        assert sampler.failure is None
        if token != END:
            ids.append(token)
        if token == END or sampler.complete:
            return tokenizer.decode(ids), len(ids)
    return None


def run(engine: Any, *requests: Any) -> Any:
    events = {request.id: [] for request in requests}
    for event in engine.generate(requests):
        engine.check()
        events[event.request_id].append(event)
    assert engine.stats().used_bytes == 0
    return events


def text(events: Any) -> Any:
    return "".join(event.text for event in events)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_random_logits_give_answers_that_fit_the_schema(demo: Any, temperature: Any) -> None:
    for seed in range(25):
        answer = random_answer(demo, schema_of(Answer), seed, temperature=temperature)
        Answer.model_validate_json(answer[0], strict=True)


def test_random_logits_give_json_objects(demo: Any) -> None:
    answers = [random_answer(demo, ANY, seed, temperature=0.5) for seed in range(20)]
    ended = [json.loads(answer[0]) for answer in answers if answer is not None]
    assert len(ended) > 3
    assert all(isinstance(value, dict) for value in ended)


def test_random_logits_give_matches_of_a_regex(demo: Any) -> None:
    pattern = r"(yes|no): [0-9]{2,4}( é+)?"
    for seed in range(20):
        answer, _ = random_answer(demo, Structure("regex", pattern), seed)
        assert re.fullmatch(pattern, answer)


def test_without_a_mask_random_logits_fit_nothing(demo: Any) -> None:
    """Negative control."""
    tokenizer, _ = demo
    ids = np.random.default_rng(0).integers(4, len(tokenizer), 30)
    with pytest.raises(ValueError, match="Invalid JSON"):
        Answer.model_validate_json(tokenizer.decode(ids))


def test_the_end_token_may_come_only_where_the_answer_is_whole(demo: Any) -> None:
    tokenizer, grammars = demo
    grammar = opened(grammars, Structure("json_schema", '{"enum": [1, 12]}'))
    allowed = []
    for token in [*tokenizer.encode("12", add_special_tokens=False), END][:2]:
        logits = torch.zeros(len(tokenizer))
        grammar.mask(logits)
        allowed.append(bool(logits[END].isfinite()))
        grammar.advance(token)
    assert not allowed[0]
    one = opened(grammars, Structure("json_schema", '{"enum": [1, 12]}'))
    one.advance(tokenizer.encode("1", add_special_tokens=False)[-1])
    logits = torch.zeros(len(tokenizer))
    one.mask(logits)
    assert logits[END].isfinite()
    assert not one.complete


def test_min_tokens_hold_the_end_back_but_not_for_ever(demo: Any) -> None:
    structure = Structure("regex", "[ab]{1,6}")
    lengths = {
        least: [random_answer(demo, structure, seed, min_tokens=least)[1] for seed in range(40)]
        for least in (0, 3, 100)
    }
    assert min(lengths[0]) < 3 <= min(lengths[3])
    assert max(lengths[100]) <= 6


def test_stop_token_ids_that_min_tokens_hold_back_cannot_break_the_form(demo: Any) -> None:
    tokenizer, grammars = demo
    letter = tokenizer.encode("a", add_special_tokens=False)[-1]
    structure = Structure("regex", "a")
    sampling = Sampling(structure=structure, stop_token_ids=(letter,), min_tokens=1)
    sampler = Sampler(sampling, (), frozenset([END, letter]), opened(grammars, structure))
    assert sample(torch.zeros(1, len(tokenizer)), [sampler])[0].token == letter


def test_a_bias_cannot_break_the_form(demo: Any) -> None:
    answer, _ = random_answer(demo, SHORT, 1, logit_bias=tuple((i, -100.0) for i in range(1000)))
    assert json.loads(answer)["a"] in (1, 22, "x")


def test_the_engine_gives_answers_that_fit_in_company_and_ends_them(engine_of: Any) -> None:
    requests = [
        random_prompt(n, seed=n).request(
            str(n),
            CachePolicy("look-m", keep=0.2) if n % 2 else CachePolicy(),
            max_tokens=300,
            ignore_eos=False,
            temperature=float(n % 3),
            seed=n,
            structure=schema_of(Answer) if n != 3 else None,
        )
        for n in range(6)
    ]
    got = run(engine_of(kv_cache_bytes=2**23), *requests)
    for id in set(got) - {"3"}:
        Answer.model_validate_json(text(got[id]), strict=True)
        assert got[id][-1].finish == "stop"


def test_structured_answers_survive_preemption(engine_of: Any) -> None:
    requests = [
        random_prompt(3, seed=n).request(
            str(n), max_tokens=60, ignore_eos=False, temperature=1.0, seed=n, structure=SHORT
        )
        for n in range(8)
    ]
    long = [random_prompt(3, seed=n).request(f"long {n}", max_tokens=60) for n in range(4)]
    alone = {request.id: text(run(engine_of(), request)[request.id]) for request in requests}
    tight = engine_of(kv_cache_bytes=3 * 5 * 3 * 2 * 2 * 16 * 16 * 4)
    got = run(tight, *long[:3], *requests, *long[3:])
    assert tight.stats().preemptions_total > 0
    assert {id: text(got[id]) for id in alone} == alone
    assert all(json.loads(answer)["a"] in (1, 22, "x") for answer in alone.values())


def test_an_answer_cut_by_max_tokens_ends_with_length(engine_of: Any) -> None:
    request = random_prompt(0, seed=1).request(
        "a", max_tokens=3, ignore_eos=False, structure=schema_of(Answer)
    )
    events = run(engine_of(), request)["a"]
    assert (len(events), events[-1].finish) == (3, "length")
    assert text(events).startswith("{")


def test_text_held_for_a_stop_string_is_shown_when_the_answer_is_whole(engine_of: Any) -> None:
    request = random_prompt(0, seed=1).request(
        "a", ignore_eos=False, structure=Structure("regex", "abc"), stop=("bcd",)
    )
    events = run(engine_of(), request)["a"]
    assert [event.text for event in events] == ["a", "", "bc"]
    assert events[-1].stop_reason is None


def test_an_answer_whole_at_max_tokens_ends_with_stop(engine_of: Any) -> None:
    structure = Structure("regex", "abc")
    request = random_prompt(0, seed=1).request(
        "a", max_tokens=3, ignore_eos=False, structure=structure
    )
    events = run(engine_of(), request)["a"]
    assert (text(events), len(events), events[-1].finish) == ("abc", 3, "stop")


def test_a_grammar_that_gives_up_ends_its_own_request_with_an_error(engine_of: Any) -> None:
    engine = engine_of()
    structured, plain = (
        random_prompt(0, seed=1).request(id, ignore_eos=False, structure=structure)
        for id, structure in (("a", ANY), ("b", None))
    )
    events = {"a": [], "b": []}
    engine.add(structured)
    engine.add(plain)
    engine._sequences["a"].sampler.grammar.failure = "too many states"
    while engine.has_work:
        for event in engine.step():
            events[event.request_id].append(event)
    assert [(e.finish, e.error, e.token_id) for e in events["a"]] == [
        ("error", "too many states", None)
    ]
    assert events["b"][-1].finish in ("stop", "length")
    assert engine.stats().used_bytes == 0


def test_a_structure_that_cannot_be_followed_is_refused_once_it_is_known(engine_of: Any) -> None:
    engine = engine_of()
    bad, good = (
        random_prompt(0, seed=1).request(id, ignore_eos=False, structure=structure)
        for id, structure in (("a", Structure("json_schema", '{"type": "objec"}')), ("b", ANY))
    )
    events = run(engine, bad, good)
    assert [(e.finish, e.refused, e.param) for e in events["a"]] == [
        ("error", "RequestError", "response_format")
    ]
    assert "Invalid type" in events["a"][0].error
    assert events["b"][-1].finish in ("stop", "length")
    with pytest.raises(RequestError, match="Invalid type"):  # it is remembered
        engine.add(bad)
    assert not engine.has_work


def test_a_structure_that_cannot_be_followed_on_is_a_refusal(demo: Any) -> None:
    tokenizer, grammars = demo
    grammar = opened(grammars, ANY)
    grammar.advance(tokenizer.encode("x", add_special_tokens=False)[-1])
    assert isinstance(grammar.refusal, RequestError)
    assert "cannot be followed" in str(grammar.refusal)
    assert not grammar.ready
    assert not grammar.complete


def test_ignoring_the_end_of_a_structured_answer_is_refused() -> None:
    postprocessor = Postprocessor(AsciiProcessor(), frozenset([END]), VOCABULARY)
    with pytest.raises(RequestError, match="ignore_eos"):
        postprocessor.sampler(Sampling(structure=ANY, ignore_eos=True), (1,))


def test_bytes_of_tokens_are_those_of_the_text(demo: Any) -> None:
    tokenizer, _ = demo
    vocabulary = Vocabulary(tokenizer.backend_tokenizer.to_str(), [END])
    for example in ("Grüße, 你好 🙂!", " a\n b"):
        ids = tokenizer.encode(example, add_special_tokens=False)
        assert b"".join(map(vocabulary.bytes_of, ids)).decode() == example
    assert vocabulary.bytes_of(END) == b"</s>"
    assert vocabulary.bytes_of(10**6) == b""
