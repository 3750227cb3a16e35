"""Requests made up from the OpenAPI description, valid and not: none makes the server fail."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.server.process import ServerProcess, serving_process

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

pytestmark = pytest.mark.e2e

BOUNDED = settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    flags = ("--model", "fake", "--threads", "1", "--max-context-tokens", "256")
    with serving_process(*flags) as server:
        yield server


@pytest.fixture(scope="module")
def schema(server: ServerProcess) -> Any:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def aimed(body: Any) -> Any:
    """Name the model that is there, or nothing behind that check would be reached."""
    named = isinstance(body, dict) and isinstance(body.get("model"), str)
    return body | {"model": "fake"} if named else body


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_no_request_of_the_schema_is_answered_with_a_5xx(
    server: ServerProcess, schema: Any, mode: str
) -> None:
    statuses: list[int] = []
    for operation in (result.ok() for result in schema.get_all_operations()):
        if mode == "negative" and not operation.body:
            continue  # a route without parameters cannot be asked wrongly
        cases = operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode))

        @BOUNDED
        @given(case=cases)
        def every_case_is_answered(case: Any) -> None:
            case.body = aimed(case.body)
            response = case.call(base_url=server.url)
            statuses.append(response.status_code)
            assert response.status_code < 500, (case.as_curl_command(), response.text)

        every_case_is_answered()
    assert len(statuses) > 50
    assert httpx.get(f"{server.url}/readyz").status_code == 200
    if mode == "positive":
        assert statuses.count(200) > 10
