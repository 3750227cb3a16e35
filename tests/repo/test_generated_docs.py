"""The operating page and .env.example say what the code says."""

import re

import pytest

from docs.generate import docker, scale
from server.settings import Settings
from tests.docker.files import DOCKER, ROOT


def test_the_page_is_what_the_code_says() -> None:
    text = (DOCKER / "README.md").read_text()
    assert docker.page(text) == text, "run make docs"


def test_env_example_is_what_the_code_says(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / ".env.example").read_text()
    assert text == docker.env_example(), "run make docs"
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


def test_the_routing_tables_are_what_the_simulation_says() -> None:
    text = scale.PAGE.read_text()
    assert scale.page(text) == text, "run make docs"
