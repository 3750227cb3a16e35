"""Libraries and tools built on OpenAI's API, as their users call them; each if installed."""

import base64
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.example_request import PICTURES, QUESTION, data_url
from tests.server.process import ServerProcess

pytestmark = pytest.mark.e2e

HERE = Path(sys.executable).parent
URLS = [data_url(scene) for scene in PICTURES]


def needs(library: str) -> pytest.MarkDecorator:
    """Skip where a library is not installed, before the server is started for it."""
    missing = importlib.util.find_spec(library) is None
    return pytest.mark.skipif(missing, reason=f"{library} is not installed")


def output(*command: str, **environment: str) -> str:
    """What a client printed, in lower case."""
    env = os.environ | environment
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    return result.stdout.lower()


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("langchain", marks=needs("langchain_openai")),
        pytest.param("pydantic_agent", marks=needs("pydantic_ai")),
    ],
)
def test_a_program_gets_its_answer(demo_server: ServerProcess, program: str) -> None:
    module = f"tests.e2e.clients.{program}"
    assert "image 2" in output(sys.executable, "-m", module, f"{demo_server.url}/v1", *URLS)


@needs("llm")
def test_llm_the_command_line_tool(demo_server: ServerProcess, tmp_path: Path) -> None:
    model = {"model_id": "demo", "model_name": "llava-demo:look-m@0.5", "vision": True}
    models = [model | {"api_base": f"{demo_server.url}/v1"}]
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(models))  # JSON is YAML
    attached = []
    for number, url in enumerate(URLS):
        path = tmp_path / f"{number}.png"
        path.write_bytes(base64.b64decode(url.partition(",")[2]))
        attached += ["-a", str(path)]
    options = ("-o", "max_tokens", "32", "-o", "temperature", "0")
    command = (str(HERE / "llm"), "-m", "demo", QUESTION, *attached, *options)
    assert "star" in output(*command, LLM_USER_PATH=str(tmp_path), OPENAI_API_KEY="any")
