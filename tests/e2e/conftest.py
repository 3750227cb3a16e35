"""One server process on the bundled demo model for all end-to-end tests."""

from collections.abc import Iterator

import openai
import pytest

from tests.server.process import ServerProcess, serving_process


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def demo_server() -> Iterator[ServerProcess]:
    with serving_process("--model", "llava-demo", "--kv-cache-memory", "256MiB") as server:
        yield server


@pytest.fixture
def ask(demo_server: ServerProcess) -> openai.OpenAI:
    return demo_server.client
