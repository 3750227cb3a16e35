"""One server process on the bundled demo model for all end-to-end tests."""

from collections.abc import Iterator

import openai
import pytest

from tests.server.process import ServerProcess


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def demo_server() -> Iterator[ServerProcess]:
    server = ServerProcess("--model", "llava-demo", "--kv-cache-memory", "256MiB")
    try:
        server.wait_ready()
        yield server
    finally:
        server.close()


@pytest.fixture
def ask(demo_server: ServerProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{demo_server.url}/v1", api_key="any", max_retries=0)
