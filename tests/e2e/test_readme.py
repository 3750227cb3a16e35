"""The README's request, run as it is written; only the address is that of the test's server."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.process import ServerProcess

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
ADDRESS = "http://127.0.0.1:8000"


def blocks(heading: str, language: str) -> list[str]:
    """The code blocks of one language under a heading of the README."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    _, found, after = readme.partition(f"\n## {heading}\n")
    assert found, f"the README has no heading {heading!r}"
    section = after.partition("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


def printed(command: list[str]) -> str:
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_request_of_the_readme_is_answered(demo_server: ServerProcess) -> None:
    (program,) = blocks("One request", "python")
    assert program.count(ADDRESS) == 1
    answer, _, usage = printed(
        [sys.executable, "-c", program.replace(ADDRESS, demo_server.url)]
    ).partition("{")
    assert answer.strip()
    assert "'method': 'look-m'" in usage


def test_the_program_that_uses_the_library_answers() -> None:
    program, _fragment = blocks("As a library", "python")
    assert printed([sys.executable, "-c", program]) == "Image 1 shows a blue star."


def test_every_command_of_the_readmes_request_succeeds(demo_server: ServerProcess) -> None:
    commands = blocks("One request", "(?:bash|sh|shell)")
    assert commands
    for command in commands:
        assert ADDRESS in command
        told = command.replace(ADDRESS, demo_server.url).replace("curl ", "curl --fail ")
        answer = json.loads(printed(["bash", "-euo", "pipefail", "-c", told]))
        assert "image 1" in answer["choices"][0]["message"]["content"].lower()
        assert answer["usage"]["kv_cache"]["method"] == "look-m"


def test_the_command_that_the_server_prints_succeeds_as_it_is(demo_server: ServerProcess) -> None:
    assert demo_server.url in demo_server.curl
    command = demo_server.curl.replace("curl ", "curl --fail ", 1)
    answer = json.loads(printed(["bash", "-ec", command]))
    assert "image 2" in answer["choices"][0]["message"]["content"].lower()
    assert answer["usage"]["kv_cache"]["method"] == "look-m"
