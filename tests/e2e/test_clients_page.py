"""The programs of docs/clients.md, run as they are written; only the address is the test's."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lookm.demo.scenes import Scene, render
from tests.server.process import ServerProcess

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8000"
IMPORTED = {"openai": "openai", "LangChain": "langchain_openai", "pydantic-ai": "pydantic_ai",
            "llm": "llm", "instructor": "instructor", "LlamaIndex": "llama_index"}  # fmt: skip
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SECTIONS = [
    (section.partition("\n")[0], *block)
    for section in PAGE.split("\n## ")[1:]
    for block in BLOCK.findall(section)
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for kind, colour in (("circle", "red"), ("star", "blue")):
        render(Scene(kind=kind, colour=colour)).save(folder / f"{kind}.png")
    return folder


@pytest.mark.parametrize(
    ("client", "language", "program"), SECTIONS, ids=[each[0] for each in SECTIONS]
)
def test_a_program_of_the_page_prints_what_it_says(
    demo_server: ServerProcess, pictures: Path, client: str, language: str, program: str
) -> None:
    if importlib.util.find_spec(IMPORTED[client]) is None:
        pytest.skip(f"{client} is not installed")
    assert program.count(ADDRESS) == 1
    command = [sys.executable, "-c"] if language == "python" else ["bash", "-euo", "pipefail", "-c"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        [*command, program.replace(ADDRESS, demo_server.url)],
        cwd=pictures,
        env=os.environ | {"LLM_USER_PATH": str(pictures), "PATH": path},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stderr
    said = re.findall(r"print\(.*\)  # (.+)", program) or ["Image 2 shows a blue star."]
    for each in said:
        assert each in result.stdout


def test_every_client_of_the_table_has_its_program() -> None:
    table = PAGE.partition("<!-- table -->")[2].partition("<!-- /table -->")[0]
    linked = re.findall(r"\]\(#([\w-]+)\)", table)
    assert linked == [name.lower() for name, *_ in SECTIONS] == [name.lower() for name in IMPORTED]
