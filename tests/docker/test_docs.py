"""The operating page and .env.example say what the code says."""

import re
import runpy

import pytest

from server.config import Settings
from tests.docker.reading import DOCKER, ROOT

DOCS = runpy.run_path(str(DOCKER / "docs.py"))


def test_the_page_is_what_the_code_says() -> None:
    text = (DOCKER / "README.md").read_text()
    assert DOCS["page"](text) == text, "run python docker/docs.py"


def test_env_example_is_what_the_code_says(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / ".env.example").read_text()
    assert text == DOCS["env_example"](), "run python docker/docs.py"
    for name, value in re.findall(r"^# (LOOKM_\w+)=(.*)$", text, re.MULTILINE):
        monkeypatch.setenv(name, value)
    assert Settings() == Settings.model_construct(), "the example's values are the defaults"


def test_every_variable_of_compose_is_in_env_example() -> None:
    example = set(re.findall(r"^# (\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    for file in ("docker-compose.yml", "docker/compose.gpu.yml"):
        assert set(re.findall(r"\$\{(\w+)", (ROOT / file).read_text())) <= example


def test_links_of_the_page_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", (DOCKER / "README.md").read_text()):
        assert (DOCKER / target).exists(), target
