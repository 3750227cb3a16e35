"""Libraries and tools built on OpenAI's API, as their users call them; each if installed."""

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from server.example import PICTURES, data_url
from tests.server.asking import image
from tests.server.process import ServerProcess

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("default"),  # theirs are not ours to fix
]

QUESTION = "What is in image 2?"
POLICY = {"kv_cache": "look-m@0.5"}
URLS = [data_url(scene) for scene in PICTURES]


def test_langchain(demo_server: ServerProcess) -> None:
    langchain: Any = pytest.importorskip("langchain_openai")
    messages: Any = pytest.importorskip("langchain_core.messages")
    chat = langchain.ChatOpenAI(
        model="llava-demo",
        base_url=f"{demo_server.url}/v1",
        api_key="any",
        temperature=0,
        max_tokens=32,
        extra_body=POLICY,
    )
    question = {"type": "text", "text": QUESTION}
    turn = messages.HumanMessage([*map(image, URLS), question])
    answer = chat.invoke([turn])
    assert "".join(chunk.content for chunk in chat.stream([turn])) == answer.content
    assert answer.usage_metadata["input_tokens"] > 128
    assert chat.invoke([turn, answer, messages.HumanMessage("And in image 1?")]).content


def test_pydantic_ai(demo_server: ServerProcess) -> None:
    pydantic_ai: Any = pytest.importorskip("pydantic_ai")
    models: Any = pytest.importorskip("pydantic_ai.models.openai")
    providers: Any = pytest.importorskip("pydantic_ai.providers.openai")
    provider = providers.OpenAIProvider(base_url=f"{demo_server.url}/v1", api_key="any")
    agent = pydantic_ai.Agent(models.OpenAIChatModel("llava-demo", provider=provider))
    settings = {"max_tokens": 32, "temperature": 0, "extra_body": POLICY}
    pictures = [pydantic_ai.BinaryContent.from_data_uri(url) for url in URLS]
    result = agent.run_sync([*pictures, QUESTION], model_settings=settings)
    assert "image 2" in result.output.lower()


def test_llm_the_command_line_tool(demo_server: ServerProcess, tmp_path: Path) -> None:
    tool = shutil.which("llm")
    if tool is None:
        pytest.skip("llm is not installed")
    model = {"model_id": "demo", "model_name": "llava-demo:look-m@0.5", "vision": True}
    models = [model | {"api_base": f"{demo_server.url}/v1"}]
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(models))  # JSON is YAML
    attached = []
    for number, url in enumerate(URLS):
        path = tmp_path / f"{number}.png"
        path.write_bytes(base64.b64decode(url.partition(",")[2]))
        attached += ["-a", str(path)]
    env = os.environ | {"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "any"}
    command = [tool, "-m", "demo", QUESTION, *attached, "-o", "max_tokens", "32"]
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert "image 2" in result.stdout.lower()
