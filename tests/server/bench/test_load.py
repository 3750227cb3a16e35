"""The load generator against the fake server: what it sends, what it counts."""

import asyncio

import httpx
import pytest

from server.bench.load import Workload, body, noise_url, run
from server.bench.peers import peers
from tests.server.process import ServerProcess


@pytest.fixture(scope="module")
def fake_url():
    server = ServerProcess("--model", "fake")
    try:
        server.wait_ready()
        yield server.url
    finally:
        server.close()


def test_every_client_gets_all_its_tokens_and_is_timed(fake_url):
    workload = Workload("fake", clients=4, max_tokens=5, image_side_px=32)
    outcome = asyncio.run(run(fake_url, workload))
    assert outcome.complete
    assert [answer.pieces for answer in outcome.answers] == [5] * 4
    assert all(0 < answer.first_s <= answer.last_s <= outcome.wall_s for answer in outcome.answers)
    assert outcome.tokens_per_s == pytest.approx(20 / outcome.wall_s)
    assert outcome.last_first_token_s == max(answer.first_s for answer in outcome.answers)


def test_a_refused_request_is_an_error_not_a_number(fake_url):
    workload = Workload("fake", 1, 5, image_side_px=32, extra=(("kv_cache", "nope"),))
    with pytest.raises(httpx.HTTPStatusError, match="400"):
        asyncio.run(run(fake_url, workload))


def test_clients_send_different_pictures_and_the_same_client_the_same():
    workload = Workload("m", clients=2, max_tokens=5, images=3)
    first, second = (body(workload, client) for client in range(2))
    assert first == body(workload, 0)
    assert first["messages"] != second["messages"]
    assert sum(part["type"] == "image_url" for part in first["messages"][0]["content"]) == 3
    assert noise_url(1, workload) != noise_url(2, workload)


def test_the_baseline_comes_first_and_ours_runs_both_policies():
    names = [peer.name for peer in peers("/models/mid")]
    assert names == ["transformers serve", "lookm full", "lookm look-m@0.2"]
