"""Aliases, and what `/v1/models` says of every name."""

from collections.abc import AsyncIterator

import httpx
import pytest
from typer.testing import CliRunner

from lookm import policy
from lookm.types import ModelInfo
from server import cli
from server.openai.request import policies
from server.settings import Settings
from tests.server.requests import CHAT, INFO, ScriptedEngine, chat, says, serving
from tests.server.test_errors import check_error

pytestmark = pytest.mark.anyio

ALIASES = "gpt-4o=fake:look-m-plus@0.2, org/small = fake"


@pytest.fixture
async def aliased() -> AsyncIterator[tuple[httpx.AsyncClient, ScriptedEngine]]:
    async with serving(Settings(model="fake", model_alias=ALIASES), says) as (client, engine, _):
        yield client, engine


async def test_an_alias_is_answered_with_its_policy_and_under_its_name(
    aliased: tuple[httpx.AsyncClient, ScriptedEngine],
) -> None:
    client, engine = aliased
    for name, method in (("gpt-4o", "look-m-plus"), ("org/small", "full")):
        answer = (await client.post(CHAT, json=chat(model=name))).json()
        assert answer["model"] == name
        assert answer["usage"]["kv_cache"]["method"] == method
    body = {"model": "gpt-4o", "prompt": "one two"}
    assert (await client.post("/v1/completions", json=body)).status_code == 200
    counted = await client.post(
        "/tokenize", json={"model": "gpt-4o", "messages": chat()["messages"]}
    )
    assert counted.json()["kv_cache"][0]["policy"] == "look-m-plus@0.2"
    assert [policy.to_string(each.policy) for each in engine.requests] == [
        "look-m-plus@0.2", "full", "look-m-plus@0.2",
    ]  # fmt: skip


async def test_another_policy_beside_an_alias_that_has_one_is_refused(
    aliased: tuple[httpx.AsyncClient, ScriptedEngine],
) -> None:
    client, _ = aliased
    refused = await client.post(CHAT, json=chat(model="gpt-4o", kv_cache="h2o@0.5"))
    check_error(refused, 400, "invalid_kv_cache", "kv_cache")
    allowed = await client.post(CHAT, json=chat(model="org/small", kv_cache="h2o@0.5"))
    assert allowed.json()["usage"]["kv_cache"]["method"] == "h2o"
    unknown = await client.post(CHAT, json=chat(model="gpt-5"))
    check_error(unknown, 404, "model_not_found", "model")
    assert "'gpt-4o'" in unknown.json()["error"]["message"]


async def test_models_are_listed_with_what_they_accept(
    aliased: tuple[httpx.AsyncClient, ScriptedEngine],
) -> None:
    client, _ = aliased
    models = {each["id"]: each for each in (await client.get("/v1/models")).json()["data"]}
    assert list(models)[:3] == ["fake", "gpt-4o", "org/small"]
    assert models["gpt-4o"]["root"] == "fake:look-m-plus@0.2"
    assert models["gpt-4o"]["kv_cache"] == "look-m-plus@0.2"
    assert (models["fake"]["root"], models["fake"]["kv_cache"]) == ("fake", "full")
    for each in models.values():
        assert each["accepts"] == {
            "text": True, "images": True, "max_images": 64, "fewest_image_tokens": 64,
            "video": False, "files": False, "tools": False,
        }  # fmt: skip
        assert each["max_model_len"] == INFO.max_context_tokens
        assert each["policies"] == list(policy.PRESETS)
        assert (await client.get(f"/v1/models/{each['id']}")).json() == each
    check_error(await client.get("/v1/models/gpt-5"), 404, "model_not_found", "model")


def test_only_presets_that_the_model_takes_are_listed() -> None:
    windowed = ModelInfo("a", 8192, 1024, 16, 2**26, 2, "float32", "cpu", windows=(64, 64))
    assert policies.taken(windowed) == ["full"]
    prefix = ModelInfo("a", 8192, 1024, 16, 2**26, 2, "float32", "cpu", causal=False)
    assert set(policy.PRESETS) - set(policies.taken(prefix)) == {"mean-h2o", "roco"}


@pytest.mark.parametrize(
    ("aliases", "said"),
    [
        (["gpt-4o"], "give NAME=fake:POLICY"),
        (["=fake"], "give NAME"),
        (["gpt-4o="], "give NAME"),
        (["a=fake", "a=fake:full"], "an alias already"),
        (["fake=fake:full"], "a name of the model itself"),
        (["fake:x=fake"], "a name of the model itself"),
        (["a=llava"], "This server has one model: 'fake'"),
        (["a=fake", "b=a"], "This server has one model: 'fake'"),
        (["a=fake:look-n@0.2"], "unknown method 'look-n'"),
        (["a=fake:look-m@2"], "cannot read '2'"),
    ],
)
def test_a_bad_alias_is_refused_at_start_in_one_line(aliases: list[str], said: str) -> None:
    flags = [part for alias in aliases for part in ("--model-alias", alias)]
    result = CliRunner().invoke(cli.app, ["serve", "--model", "fake", *flags])
    assert result.exit_code == 2
    (line,) = result.output.strip().splitlines()
    assert line.startswith("error: --model-alias ")
    assert said in line


def test_the_flag_may_be_given_several_times(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Settings] = []
    monkeypatch.setattr("server.launch.launch", lambda settings: seen.append(settings) or 0)
    flags = ["--model-alias", "a=fake", "--model-alias", "b=fake,c=fake", "--cors-origins", "x"]
    CliRunner().invoke(cli.app, ["serve", *flags])
    assert seen[0].model_alias == ("a=fake", "b=fake", "c=fake")
    assert seen[0].cors_origins == ("x",)
