"""Keys with limits, as clients meet them: 429 at the edge, headers, policies, reloading."""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import openai
import pytest

from lookm.types import Request, TokenEvent
from server.settings import Settings
from tests.server.keys.test_bucket import Clock
from tests.server.process import serving_process, wait_until
from tests.server.requests import CHAT, chat, says, says_after, serving, until
from tests.server.test_errors import check_error

pytestmark = pytest.mark.anyio


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def settings(tmp_path: Path, text: str, **others: object) -> Settings:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    return Settings(model="fake", key_limits=path, **others)


def hold_clock(app: object, key: str = "k") -> Clock:
    """The clock of a key's account stands still from now on."""
    clock = Clock()
    account = app.state.services.keys.find(key)
    for bucket in (account._requests, account._tokens):
        if bucket is not None:
            bucket._clock, bucket._at_s, bucket._left = clock, clock.now_s, bucket.per_minute
    return clock


def limited(text: str) -> str:
    return f'[keys.alice]\nkey = "k"\n{text}\n[keys.bob]\nkey = "b"\n'


async def test_requests_a_minute_as_openai_says_it(tmp_path: Path) -> None:
    given = settings(tmp_path, limited("requests_per_minute = 3"))
    async with serving(given, says) as (client, engine, app):
        clock = hold_clock(app)
        for left in (2, 1, 0):
            answer = await client.post(CHAT, json=chat(stream=left == 1), headers=bearer("k"))
            assert answer.status_code == 200
            assert answer.headers["x-ratelimit-limit-requests"] == "3"
            assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
            assert answer.headers["x-ratelimit-reset-requests"] in ("20s", "40s", "1m0s")
            assert "x-ratelimit-limit-tokens" not in answer.headers
        refused = await client.post(CHAT, json=chat(), headers=bearer("k"))
        assert (refused.status_code, len(engine.requests)) == (429, 3)
        error = refused.json()["error"]
        assert (error["code"], error["type"]) == ("rate_limit_exceeded", "requests")
        assert "'alice'" in error["message"]
        assert "try again in 20s" in error["message"]
        assert refused.headers["retry-after"] == "20"
        assert refused.headers["retry-after-ms"] == "20000"
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        other = await client.post(CHAT, json=chat(), headers=bearer("b"))
        assert other.status_code == 200
        assert not any(name.startswith("x-ratelimit") for name in other.headers)
        free = await client.get("/v1/models", headers=bearer("k"))
        assert free.status_code == 200
        clock.now_s += 20
        assert (await client.post(CHAT, json=chat(), headers=bearer("k"))).status_code == 200
        assert (await client.post(CHAT, json=chat(), headers=bearer("k"))).status_code == 429


async def test_tokens_a_minute_hold_what_may_come_and_count_what_did(tmp_path: Path) -> None:
    given = settings(tmp_path, limited("tokens_per_minute = 100"))
    async with serving(given, says) as (client, engine, app):
        hold_clock(app)
        body = chat(max_tokens=50, usage_options=None)
        answer = await client.post(CHAT, json=body, headers=bearer("k"))
        usage = answer.json()["usage"]
        prompt = usage["prompt_tokens"]
        assert usage["completion_tokens"] == 3
        assert answer.headers["x-ratelimit-limit-tokens"] == "100"
        left = 100 - prompt - 3
        fits = chat(max_tokens=left - prompt)
        over = chat(max_tokens=left - prompt + 1)
        refused = await client.post(CHAT, json=over, headers=bearer("k"))
        assert refused.status_code == 429
        assert refused.json()["error"]["type"] == "tokens"
        assert refused.headers["x-ratelimit-remaining-tokens"] == str(left)
        wait_s = 60 / 100  # one token is missing
        assert refused.headers["retry-after-ms"] == str(round(wait_s * 1000))
        assert refused.headers["retry-after"] == "1"
        assert len(engine.requests) == 1
        assert (await client.post(CHAT, json=fits, headers=bearer("k"))).status_code == 200


async def test_what_can_never_fit_is_not_worth_another_try(tmp_path: Path) -> None:
    given = settings(tmp_path, limited("tokens_per_minute = 100"))
    async with serving(given, says) as (client, _, _app):
        for body in (chat(max_tokens=101), chat(max_tokens=40, n=3)):
            refused = await client.post(CHAT, json=body, headers=bearer("k"))
            assert refused.status_code == 429
            assert "too large" in refused.json()["error"]["message"]
            assert refused.headers["x-should-retry"] == "false"
            assert "retry-after" not in refused.headers
        unbounded = {k: v for k, v in chat("hi").items() if k != "max_tokens"}
        refused = await client.post(CHAT, json=unbounded, headers=bearer("k"))
        assert refused.status_code == 429, "an open end counts for 256 tokens"


async def test_what_is_never_answered_costs_no_tokens_and_debts_are_paid_first(
    tmp_path: Path,
) -> None:
    async def fails(request: Request) -> AsyncIterator[TokenEvent]:
        raise RuntimeError
        yield

    text = limited("tokens_per_minute = 1000")
    async with serving(settings(tmp_path, text), fails) as (client, _, app):
        hold_clock(app)
        failed = await client.post(CHAT, json=chat(max_tokens=500), headers=bearer("k"))
        assert failed.status_code == 500
        bad = await client.post(CHAT, json=chat(max_tokens=-1), headers=bearer("k"))
        check_error(bad, 400, "invalid_value", "max_tokens")
        assert bad.headers["x-ratelimit-remaining-tokens"] == "1000"
        account = app.state.services.keys.find("k")
        account._tokens.take(1010)
        bodiless = await client.post(CHAT, content=b"no json", headers=bearer("k"))
        assert bodiless.status_code == 429, "nothing is read where no token is left"
        assert bodiless.headers["x-ratelimit-remaining-tokens"] == "0"


async def test_tokens_are_held_while_answers_run(tmp_path: Path) -> None:
    release = asyncio.Event()
    given = settings(tmp_path, limited("tokens_per_minute = 200"))
    async with serving(given, says_after(release)) as (client, engine, app):
        hold_clock(app)
        body = chat(max_tokens=90)
        held = [asyncio.create_task(client.post(CHAT, json=body, headers=bearer("k")))
                for _ in range(2)]  # fmt: skip
        await until(lambda: engine.open == 2)
        refused = await client.post(CHAT, json=body, headers=bearer("k"))
        assert refused.status_code == 429
        release.set()
        assert [(await each).status_code for each in held] == [200, 200]
        assert (await client.post(CHAT, json=body, headers=bearer("k"))).status_code == 200


async def test_a_key_may_ask_for_its_policies_only_and_gets_its_default(tmp_path: Path) -> None:
    text = limited('policies = ["look-m@0.3", "full"]\ndefault_policy = "look-m@0.2"')
    async with serving(settings(tmp_path, text), says) as (client, engine, _):
        for model, cache, told in (
            ("fake", None, None),
            ("fake", "full", None),
            ("fake", {"method": "look-m", "keep": 0.3, "merge": "average"}, None),
            ("fake", "look-m@0.31", "kv_cache"),
            ("fake", {"method": "h2o"}, "kv_cache"),
            ("fake:snapkv@0.1", None, "model"),
        ):
            body = chat(model=model, kv_cache=cache)
            answer = await client.post(CHAT, json=body, headers=bearer("k"))
            if told:
                check_error(answer, 403, "policy_not_allowed", told)
                assert "'look-m@0.3', 'full'" in answer.json()["error"]["message"]
            else:
                assert answer.status_code == 200
        assert engine.requests[0].policy.method == "look-m"
        assert engine.requests[0].policy.keep == 0.2
        asked = {k: chat()[k] for k in ("model", "messages")} | {"kv_cache": "h2o"}
        refused = await client.post("/tokenize", json=asked, headers=bearer("k"))
        check_error(refused, 403, "policy_not_allowed", "kv_cache")
        listed = (await client.get("/v1/models", headers=bearer("k"))).json()["data"]
        assert [each["id"] for each in listed] == ["fake", "fake:full", "fake:look-m@0.2"]
        assert listed[0]["kv_cache"] == "look-m@0.2"
        everything = (await client.get("/v1/models", headers=bearer("b"))).json()["data"]
        assert len(everything) > 10


async def test_places_of_a_key_are_its_own_and_may_change(tmp_path: Path) -> None:
    release = asyncio.Event()
    given = settings(tmp_path, limited("places = 1"), max_running=4, max_waiting=8)
    async with serving(given, says_after(release)) as (client, engine, app):
        live = app.state.services
        ask = [
            asyncio.create_task(client.post(CHAT, json=chat(), headers=bearer("k")))
            for _ in range(3)
        ]
        await until(lambda: live.key_turns.num_waiting == 2)
        assert engine.open == 1
        check_error(
            await client.post(CHAT, json=chat(), headers=bearer("k")), 429, "queue_full", None
        )
        given.key_limits.write_text(limited("places = 2"))
        await live.reread_keys()
        await until(lambda: engine.open == 2)
        given.key_limits.write_text(limited(""))
        await live.reread_keys()
        await until(lambda: engine.open == 3)
        release.set()
        assert [(await each).status_code for each in ask] == [200] * 3


async def test_a_file_read_again_changes_keys_and_keeps_what_was_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = settings(tmp_path, limited("requests_per_minute = 2"))
    async with serving(given, says) as (client, _, app):
        clock, live = hold_clock(app), app.state.services
        for _ in range(2):
            await client.post(CHAT, json=chat(), headers=bearer("k"))
        given.key_limits.write_text('[keys.carol]\nkey = "k"\nrequests_per_minute = 120\n')
        await live.reread_keys()
        assert (await client.post(CHAT, json=chat(), headers=bearer("b"))).status_code == 401
        used = await client.post(CHAT, json=chat(), headers=bearer("k"))
        assert used.status_code == 429, "a new limit is no new allowance"
        clock.now_s += 0.5
        assert (await client.post(CHAT, json=chat(), headers=bearer("k"))).status_code == 200
        caplog.set_level(logging.INFO, "lookm.server")
        caplog.clear()
        for broken in ('[keys.carol]\nkey = "sk-other"\nplaces = 0', "[keys", ""):
            given.key_limits.write_text(broken)
            await live.reread_keys()
        given.key_limits.unlink()
        await live.reread_keys()
        assert [record.levelname for record in caplog.records] == ["ERROR"] * 4
        assert "sk-other" not in caplog.text
        clock.now_s += 0.5
        assert (await client.post(CHAT, json=chat(), headers=bearer("k"))).status_code == 200
        metrics = (await client.get("/metrics", headers=bearer("k"))).text
        assert 'lookm_key_requests_total{key="alice"} 2.0' in metrics
        assert 'lookm_key_requests_total{key="carol"} 3.0' in metrics
        assert 'lookm_key_refused_total{key="carol"} 1.0' in metrics
        assert 'lookm_key_generated_tokens_total{key="alice"} 6.0' in metrics
        assert 'lookm_key_requests_total{key="unnamed"} 0.0' in metrics


async def test_the_log_names_the_key_and_never_has_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    text = '[default]\nrequests_per_minute = 1\n[keys.alice]\nkey = "sk-alice-1"\n'
    async with serving(settings(tmp_path, text, api_keys="sk-listed-1"), says) as (client, _, _a):
        for key, count in (("sk-alice-1", 1), ("sk-listed-1", 2)):
            for _ in range(count):
                last = await client.post(CHAT, json=chat(), headers=bearer(key))
        assert last.status_code == 429, "listed keys have the default's limits, each its own"
    lines = [r.getMessage() for r in caplog.records if r.name == "lookm.access"]
    assert [line.endswith(" key=alice") for line in lines] == [True, False, False]
    assert "sk-" not in caplog.text


def test_sighup_reads_the_file_again_and_the_server_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text('[keys.alice]\nkey = "one"\nrequests_per_minute = 1\n')
    with serving_process("--model", "fake", "--key-limits", str(path)) as server:

        def ask(key: str) -> object:
            client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)
            return client.chat.completions.create(**chat())

        ask("one")
        with pytest.raises(openai.RateLimitError) as limited:
            ask("one")
        assert limited.value.code == "rate_limit_exceeded"
        assert 0 < int(limited.value.response.headers["retry-after"]) <= 60
        with pytest.raises(openai.AuthenticationError):
            ask("two")
        path.write_text('[keys.bob]\nkey = "two"\n')
        os.kill(server.process.pid, signal.SIGHUP)

        def known() -> bool:
            url = f"{server.url}/v1/models"
            return httpx.get(url, headers=bearer("two")).status_code == 200

        wait_until(known)
        ask("two")
        with pytest.raises(openai.AuthenticationError):
            ask("one")
        path.write_text("[keys")
        os.kill(server.process.pid, signal.SIGHUP)
        ask("two")
    assert server.process.returncode == 0
