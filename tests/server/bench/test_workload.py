"""What the load generator sends."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from server.bench.load.workload import Spread, Workload, make_ask, parse_policies

SMALL = Workload("m", image_side_px=16)


def body(workload, index=0):
    return json.loads(make_ask(workload, index).body)


@pytest.mark.parametrize("text", ["64", "16-128", "~64"])
def test_a_spread_is_written_as_it_was_read(text):
    assert str(Spread.parse(text)) == text


@pytest.mark.parametrize("text", ["", "many", "8-", "9-2", "-3", "~", "~x", "1-2-3"])
def test_a_spread_that_makes_no_sense_is_refused(text):
    with pytest.raises(ValueError, match=r"write 64|a range goes"):
        Spread.parse(text)


def test_a_uniform_spread_reaches_both_of_its_ends_evenly():
    rng = np.random.default_rng(0)
    seen = Counter(Spread.parse("2-4").draw(rng) for _ in range(3000))
    assert set(seen) == {2, 3, 4}
    assert all(900 < count < 1100 for count in seen.values())


def test_an_exponential_spread_has_its_mean_and_its_bounds():
    rng = np.random.default_rng(0)
    seen = [Spread.parse("~50").draw(rng) for _ in range(4000)]
    assert np.mean(seen) == pytest.approx(50 * (1 - np.exp(-4)), rel=0.05)  # cut at 4 x the mean
    assert min(seen) >= 1
    assert max(seen) <= 200


def test_the_same_seed_asks_the_same_and_another_seed_does_not():
    assert make_ask(SMALL, 3) == make_ask(SMALL, 3)
    assert make_ask(SMALL, 3).body != make_ask(replace(SMALL, seed=1), 3).body
    assert make_ask(SMALL, 3).body != make_ask(SMALL, 4).body


def test_a_request_has_its_images_first_then_its_words_and_asks_for_usage():
    sent = body(replace(SMALL, images=Spread(3, 3), words=Spread(5, 5)))
    kinds = [part["type"] for part in sent["messages"][0]["content"]]
    assert kinds == ["image_url"] * 3 + ["text"]
    assert len(sent["messages"][0]["content"][-1]["text"].split()) == 5
    assert sent["stream_options"] == {"include_usage": True}
    assert sent["stream"] is True
    assert sent["temperature"] == 0


def test_no_two_pictures_are_the_same():
    urls = [
        part["image_url"]["url"]
        for index in range(4)
        for part in body(replace(SMALL, images=Spread(4, 4)), index)["messages"][0]["content"][:-1]
    ]
    assert len(set(urls)) == 16


def test_another_nonce_changes_the_pictures_and_nothing_else():
    """A second run must not find the first one's pictures in the server's feature cache."""
    mixed = replace(SMALL, images=Spread(1, 8), words=Spread(1, 8), answer_tokens=Spread(1, 99))
    for index in range(5):
        first, second = body(mixed, index), body(replace(mixed, nonce=1), index)
        for sent in (first, second):
            *images, text = sent["messages"][0]["content"]
            sent["messages"] = [len(images), text]
            sent["urls"] = [image["image_url"]["url"] for image in images]
        assert not set(first.pop("urls")) & set(second.pop("urls"))
        assert first == second


def test_policies_are_drawn_by_weight_and_do_not_change_the_questions():
    mixed = replace(SMALL, policies=parse_policies("full=0.3,look-m@0.2=0.7"))
    asks = [make_ask(mixed, index) for index in range(400)]
    share = sum(ask.policy == "full" for ask in asks) / 400
    assert share == pytest.approx(0.3, abs=0.06)
    for ask in asks[:5]:
        mine, plain = json.loads(ask.body), body(SMALL, ask.index)
        assert mine.pop("kv_cache") == ask.policy
        assert mine == plain


def test_a_policy_does_not_depend_on_how_large_its_request_is():
    mixed = replace(SMALL, images=Spread(1, 8), policies=parse_policies("full look-m@0.2"))
    sizes = {"full": [], "look-m@0.2": []}
    for index in range(400):
        ask = make_ask(mixed, index)
        sizes[ask.policy].append(ask.body.count(b"image_url") // 2)
    means = [np.mean(each) for each in sizes.values()]
    assert means == pytest.approx([4.5, 4.5], abs=0.6)


def test_a_policy_goes_into_the_models_name_where_there_is_no_field_for_it():
    sent = body(replace(SMALL, policies=(("look-m@0.2", 1.0),), kv_cache_field=False))
    assert sent["model"] == "m:look-m@0.2"
    assert "kv_cache" not in sent


def test_a_plain_request_has_nothing_that_only_this_server_knows():
    sent = body(replace(SMALL, ignore_eos=False))
    openai = {"model", "messages", "max_tokens", "temperature", "stream", "stream_options"}
    assert set(sent) == openai


@pytest.mark.parametrize("text", ["full=x", "full=0", "=1", "full,full=2", "full full"])
def test_a_mix_that_makes_no_sense_is_refused(text):
    with pytest.raises(ValueError, match=r"write POLICY|needs a name|named twice"):
        parse_policies(text)
