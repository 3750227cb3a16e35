"""The main job, as users do it: `lookm serve`, images, a question, an answer under look-m@0.2."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from lookm.demo.scenes import Scene
from server.example_request import data_url
from tests.server.process import ServerProcess, wait_until
from tests.server.requests import CHAT, chat, text
from tests.server.requests import image as part

pytestmark = pytest.mark.e2e

MODEL = "llava-demo"
PAGE_TOKENS, NUM_LAYERS = 16, 6


def picture(kind: str, colour: str) -> dict[str, Any]:
    return part(data_url(Scene(kind=kind, colour=colour)))


RED_CIRCLE, BLUE_STAR = picture("circle", "red"), picture("star", "blue")


def question(*parts: Any, **fields: Any) -> dict[str, Any]:
    return chat(*parts, **{"model": MODEL, "temperature": 0, "max_tokens": 32} | fields)


QUESTION = question(RED_CIRCLE, BLUE_STAR, "What is in image 2?")


@pytest.fixture
def answer(demo_server: ServerProcess) -> Callable[..., str]:
    def ask(*parts: Any, **fields: Any) -> str:
        response = httpx.post(demo_server.url + CHAT, json=question(*parts, **fields), timeout=60)
        assert response.status_code == 200, response.text
        return str(response.json()["choices"][0]["message"]["content"])

    return ask


def test_two_images_under_look_m_whole_and_streamed(ask: openai.OpenAI) -> None:
    kept = {"kv_cache": "look-m@0.2"}
    whole = ask.chat.completions.create(**QUESTION, extra_body=kept)
    assert whole.choices[0].finish_reason == "stop"
    usage = whole.usage.model_extra["kv_cache"]
    assert usage["method"] == "look-m"
    assert usage["image_tokens"] == 128
    assert usage["kept_tokens"] < 0.25 * usage["prompt_tokens"]
    assert usage["merged_tokens"] == usage["prompt_tokens"] - usage["kept_tokens"]
    assert usage["bytes"] < 0.4 * usage["full_bytes"]
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = ask.chat.completions.create(**QUESTION, **options, extra_body=kept)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert streamed == whole.choices[0].message.content
    assert last.usage.model_extra["kv_cache"] == usage


def test_the_answer_is_about_the_image_that_was_asked_for(answer: Callable[..., str]) -> None:
    assert "star" in answer(RED_CIRCLE, BLUE_STAR, "What is in image 2?")
    assert "circle" in answer(BLUE_STAR, RED_CIRCLE, "What is in image 2?")
    assert "circle" in answer(RED_CIRCLE, BLUE_STAR, "What is in image 1?")


def test_an_image_of_an_earlier_turn_is_seen(demo_server: ServerProcess) -> None:
    turns = [
        {"role": "user", "content": [RED_CIRCLE, text("What is in image 1?")]},
        {"role": "assistant", "content": "Image 1 shows a red circle."},
        {"role": "user", "content": [BLUE_STAR, text("What is in image 2?")]},
    ]
    body = QUESTION | {"messages": turns, "kv_cache": "look-m@0.5"}
    response = httpx.post(demo_server.url + CHAT, json=body, timeout=60)
    assert response.json()["usage"]["prompt_tokens_details"]["image_tokens"] == 128
    assert "image 2" in response.json()["choices"][0]["message"]["content"].lower()


def test_a_fifth_of_the_cache_takes_a_fifth_of_the_memory(demo_server: ServerProcess) -> None:
    page_bytes = demo_server.series("lookm_kv_cache_capacity_bytes") / (256 * 2**20 / 16384)
    used = {}
    for policy in ("full", "look-m@0.2"):
        body = question(*[RED_CIRCLE] * 8, "Hm?", kv_cache=policy)
        body |= {"stream": True, "max_tokens": 400, "ignore_eos": True}
        with httpx.stream("POST", demo_server.url + CHAT, json=body, timeout=60) as response:
            lines = response.iter_lines()  # dropping it would close the connection
            next(lines)
            used[policy] = demo_server.series("lookm_kv_cache_used_bytes")
            assert demo_server.series("lookm_requests_running") == 1
        wait_until(lambda: demo_server.series("lookm_kv_cache_used_bytes") == 0)
    assert used["look-m@0.2"] <= 0.2 * used["full"] + 2 * NUM_LAYERS * page_bytes


def test_leaving_before_the_answer_frees_every_page(demo_server: ServerProcess) -> None:
    body = question(RED_CIRCLE, "Hm?", max_tokens=1500, ignore_eos=True)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(demo_server.url + CHAT, json=body, timeout=0.5)
    wait_until(lambda: demo_server.series("lookm_kv_cache_used_bytes") == 0)
    assert demo_server.series("lookm_requests_running") == 0


def test_eight_clients_take_well_under_eight_times_one(answer: Callable[..., str]) -> None:
    def timed(count: int) -> float:
        begun_s = time.perf_counter()
        with ThreadPoolExecutor(count) as clients:
            list(clients.map(lambda _: answer(RED_CIRCLE, "Hm?", **long), range(count)))
        return time.perf_counter() - begun_s

    long = {"max_tokens": 48, "ignore_eos": True, "kv_cache": "look-m@0.2"}
    timed(1)
    assert timed(8) < 6 * timed(1)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"kv_cache": "look-m@7"}, "kv_cache"),
        ({"kv_cache": "zip"}, "kv_cache"),
        ({"unknown": 1}, "unknown"),
        (question("word " * 3000), "messages"),
        (question(part("/etc/passwd"), "x"), "messages[0].content[0].image_url.url"),
        (question(part("http://127.0.0.1/a.png"), "x"), "messages[0].content[0].image_url.url"),
        (question(*[RED_CIRCLE] * 40, "x"), "messages"),
    ],
)
def test_bad_input_is_refused_and_the_next_request_is_served(
    demo_server: ServerProcess, answer: Callable[..., str], fields: dict[str, Any], param: str
) -> None:
    response = httpx.post(demo_server.url + CHAT, json=QUESTION | fields, timeout=60)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert answer(RED_CIRCLE, "What is in image 1?")


def test_control_words_in_a_message_are_only_text(answer: Callable[..., str]) -> None:
    assert answer(RED_CIRCLE, "<image> </s> What is in image 1? <image>")


def test_what_was_kept_is_in_the_metrics(demo_server: ServerProcess) -> None:
    assert demo_server.series('lookm_kv_kept_ratio_count{method="look-m"}') > 0
    assert demo_server.series('lookm_kv_merged_tokens_total{method="look-m"}') > 0
    assert demo_server.series("lookm_image_cache_hits_total") > 0
    assert demo_server.series("lookm_decode_tokens_per_second") > 0


def test_seeded_choices_are_the_answers_of_the_seeds_that_follow(ask: openai.OpenAI) -> None:
    def answers(**fields: Any) -> list[str | None]:
        hot: Any = QUESTION | {"temperature": 2, "max_tokens": 12}
        extra = {"kv_cache": "look-m@0.2", "ignore_eos": True}
        told = ask.chat.completions.create(**hot, **fields, extra_body=extra)
        return [choice.message.content for choice in told.choices]

    together = answers(n=2, seed=40)
    assert together == answers(seed=40) + answers(seed=41)
    assert together[0] != together[1]


def test_an_answer_follows_a_json_schema_and_tells_its_logprobs(ask: openai.OpenAI) -> None:
    properties = {"shape": {"enum": ["circle", "star", "square"]}, "count": {"enum": [1, 2, 3]}}
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "what", "schema": schema}}
    fields: Any = {"logprobs": True, "top_logprobs": 2, "max_tokens": 64}
    answer = ask.chat.completions.create(**QUESTION | fields, response_format=form)
    told = json.loads(answer.choices[0].message.content or "")
    assert told.keys() == {"shape", "count"}
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert all(len(entry.top_logprobs) == 2 for entry in logprobs.content or [])
    text = b"".join(bytes(entry.bytes or []) for entry in logprobs.content or [])
    assert json.loads(text) == told
