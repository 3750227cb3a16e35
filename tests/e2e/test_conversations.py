"""A chat about pictures that goes on: what an earlier turn computed is not computed again."""

from typing import Any

import httpx
import openai
import pytest

from lookm.demo.scenes import Scene
from server.example_request import data_url
from tests.server.process import ServerProcess, serving_process
from tests.server.requests import image, text

pytestmark = pytest.mark.e2e

COLOURS = ("red", "blue", "green", "orange")
PICTURES = [image(data_url(Scene(kind="circle", colour=colour))) for colour in COLOURS]
FIRST = [{"role": "user", "content": [*PICTURES, text("What is in image 2?")]}]
IMAGE_TOKENS = 256


def turn(
    client: openai.OpenAI, messages: list[Any], kv_cache: Any, **extra: Any
) -> tuple[str, int]:
    """The answer, and how many of the prompt's tokens were known."""
    answer = client.chat.completions.create(
        model="llava-demo",
        messages=messages,
        temperature=0,
        max_tokens=40,
        extra_body={"kv_cache": kv_cache, **extra},
    )
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    text = answer.choices[0].message.content
    assert text is not None
    return text, answer.usage.prompt_tokens_details.cached_tokens or 0


@pytest.mark.parametrize("method", ["full", "look-m", "snapkv", "look-m-plus"])
def test_the_second_turn_takes_over_the_images_and_answers_as_afresh(
    demo_server: ServerProcess, method: str
) -> None:
    policy = {"method": method} if method == "full" else {"method": method, "keep": 0.3}
    salt = {"cache_salt": method}  # what other tests asked does not count
    client = demo_server.client
    said, known = turn(client, FIRST, policy, **salt)
    assert known == 0
    second = [
        *FIRST,
        {"role": "assistant", "content": said},
        {"role": "user", "content": "List the colours of all images."},
    ]
    answer, known = turn(client, second, policy, **salt)
    assert known >= IMAGE_TOKENS - 64
    afresh, none = turn(client, second, {**policy, "reuse": "none"}, **salt)
    assert none == 0
    assert answer == afresh
    where = "parked" if method == "full" else "prompt_store"
    assert demo_server.series(f"lookm_{where}_hit_tokens_total") >= known
    assert demo_server.series("lookm_prompt_store_bytes") > 0


def test_another_salt_knows_nothing(ask: openai.OpenAI) -> None:
    for field in ("prompt_cache_key", "cache_salt"):
        assert turn(ask, FIRST, "full", **{field: "one"})[1] == 0
        assert turn(ask, FIRST, "full", **{field: "one"})[1] > 0
        assert turn(ask, FIRST, "full", **{field: "two"})[1] == 0


def test_a_key_reuses_its_own_prompts_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKM_API_KEYS", "one,two")
    with serving_process("--model", "llava-demo", "--prompt-store-memory", "64MiB") as server:
        one, two = (
            openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)
            for key in ("one", "two")
        )
        assert turn(one, FIRST, "full")[1] == 0
        assert turn(one, FIRST, "full")[1] > 0
        assert turn(two, FIRST, "full")[1] == 0
        assert turn(two, FIRST, "full")[1] > 0


def test_reuse_is_read_strictly(demo_server: ServerProcess) -> None:
    body = {"model": "llava-demo", "messages": [{"role": "user", "content": "hi"}]}
    wrong = {**body, "kv_cache": {"method": "full", "reuse": "always"}}
    answer = httpx.post(f"{demo_server.url}/v1/chat/completions", json=wrong)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "kv_cache.reuse"
