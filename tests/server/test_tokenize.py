"""`POST /tokenize` counts what the same chat would take."""

import httpx
import pytest
import torch

from lookm.policy import PRESETS, resolve
from lookm.policy.depth import Adaptive
from lookm.sizing import kept_rows
from server.openai.request import policies
from tests.server.requests import CHAT, chat, image

pytestmark = pytest.mark.anyio


async def test_counts_are_those_of_the_answered_request(client: httpx.AsyncClient) -> None:
    body = chat(image(), image(), "two words", kv_cache="look-m@0.5")
    usage = (await client.post(CHAT, json=body)).json()["usage"]
    del body["max_tokens"]
    response = await client.post("/tokenize", json=body)
    assert response.status_code == 200
    counted = response.json()
    assert counted["count"] == usage["prompt_tokens"]
    assert counted["images"] == [64, 64]
    assert counted["image_tokens"] == 128
    assert counted["max_model_len"] == 8192
    first, *others = counted["kv_cache"]
    assert first["policy"] == "look-m@0.5"
    assert {each["policy"].split("@")[0] for each in others} == set(PRESETS)
    by_name = {each["policy"]: each for each in counted["kv_cache"]}
    assert by_name["full"]["kept_tokens"] == counted["count"]
    assert by_name["full"]["bytes"] == 144 * 1024  # nine pages of 16 tokens
    assert by_name["look-m@0.2"]["bytes"] < by_name["look-m@0.5"]["bytes"]


async def test_only_what_can_be_counted_is_accepted(client: httpx.AsyncClient) -> None:
    response = await client.post("/tokenize", json=chat("x"))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "max_tokens"


@pytest.mark.parametrize("windows", [(None,) * 5, (9, 9, None, 9, None), (200, None, 2, None, 2)])
@pytest.mark.parametrize("method", sorted(PRESETS))
def test_each_layer_is_counted_as_the_engine_reserves_it(
    method: str, windows: tuple[int | None, ...]
) -> None:
    ids = [1, *[7] * 60, 2, 3, *[7] * 60, *range(10, 40)]
    asked = policies.preset(method)
    recipe = resolve(asked)
    reserved = kept_rows(recipe, torch.tensor(ids) == 7, windows, causal=True).bound_L.tolist()
    rows = policies.kept(asked, ids, 7, windows).expected_L.tolist()
    for counted, bound, window in zip(rows, reserved, windows, strict=True):
        if window is None and isinstance(recipe.preset.depth, Adaptive):
            assert counted <= bound, "these know only when they have seen the layers"
        else:
            assert counted == bound
