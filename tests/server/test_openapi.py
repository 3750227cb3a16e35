"""The description at `/docs` is complete, and its examples run."""

import re
from typing import Any

import httpx
import pytest

from server.openai.schemas.requests import ChatRequest, CompletionRequest, TokenizeRequest
from server.openai.schemas.responses import ResponsesRequest
from server.settings import Settings
from tests.server.requests import says, serving

pytestmark = pytest.mark.anyio


async def described(client: httpx.AsyncClient) -> dict[str, Any]:
    response = await client.get("/openapi.json")
    assert response.status_code == 200
    body: dict[str, Any] = response.json()
    return body


async def test_every_reference_resolves_and_every_model_is_there(client: httpx.AsyncClient) -> None:
    schema = await described(client)
    names = schema["components"]["schemas"]
    for model in (ChatRequest, CompletionRequest, TokenizeRequest, ResponsesRequest):
        properties = names[model.__name__]["properties"]
        assert properties.keys() == model.model_fields.keys()
    for reference in references(schema):
        assert reference.removeprefix("#/components/schemas/") in names
    assert names["ChatRequest"]["additionalProperties"] is False


async def test_the_examples_run_as_they_are(client: httpx.AsyncClient) -> None:
    schema = await described(client)
    ran = 0
    for route, methods in schema["paths"].items():
        body = methods.get("post", {}).get("requestBody")
        if body is not None and "application/json" in body["content"]:
            example = body["content"]["application/json"]["example"]
            response = await client.post(route, json=example)
            assert response.status_code == 200, response.text
            ran += 1
    assert ran == 4


async def test_the_example_is_a_request_with_images_for_the_model_that_is_served() -> None:
    settings = Settings(model="fake", served_model_name="mine")
    async with serving(settings, says) as (client, _, _app):
        paths = (await described(client))["paths"]
        body = paths["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]
        assert body["example"]["model"] == "mine"
        kinds = [part["type"] for part in body["example"]["messages"][0]["content"]]
        assert kinds == ["image_url", "image_url", "text"]


async def test_every_field_of_kv_cache_is_shown_with_its_meaning(client: httpx.AsyncClient) -> None:
    schemas = (await described(client))["components"]["schemas"]
    for model in ("KvCache", "KvCacheUsage"):
        for name, field in schemas[model]["properties"].items():
            assert len(field["description"]) > 10, (model, name)
    assert "`look-m@0.2`" in schemas["ChatRequest"]["properties"]["kv_cache"]["description"]


@pytest.mark.parametrize("keys", [{}, {"api_keys": "k"}])
async def test_docs_have_a_place_for_a_key_where_one_is_needed(keys: dict[str, str]) -> None:
    async with serving(Settings(model="fake", **keys), says) as (client, _, _app):
        schema = await described(client)
        assert ("securitySchemes" in schema["components"]) == bool(keys)
        assert ("security" in schema) == bool(keys)


@pytest.mark.parametrize(("route", "num_assets"), [("/docs", 3), ("/redoc", 2)])
async def test_the_docs_pages_load_nothing_from_elsewhere(
    client: httpx.AsyncClient, route: str, num_assets: int
) -> None:
    page = (await client.get(route)).text
    assets = re.findall(r'<(?:script|link)[^>]*(?:src|href)="([^"]+)"', page)
    assert len(assets) == num_assets
    assert "//" not in re.sub(r"<!--.*?-->", "", page.replace("</", ""))
    for asset in assets:
        response = await client.get(asset)
        assert response.status_code == 200, asset
        assert len(response.content) > 1000


def references(node: Any) -> list[str]:
    if isinstance(node, list):
        return [found for each in node for found in references(each)]
    if isinstance(node, dict):
        here = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return here + references(list(node.values()))
    return []
