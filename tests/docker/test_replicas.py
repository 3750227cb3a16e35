"""Three servers behind nginx: the files fit each other, and a real nginx keeps conversations."""

import re
import shutil
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
import yaml

from server.settings import Settings
from tests.docker.files import DOCKER, ROOT
from tests.server.process import ServerProcess, serving_process
from tests.server.requests import CHAT, chat, image

FOLDER = DOCKER / "replicas"
CONFIG = (FOLDER / "nginx.conf").read_text()
COMPOSE = yaml.safe_load((FOLDER / "compose.yml").read_text())
REPLICAS = re.findall(r"server (replica-\d):8000 ", CONFIG)


def test_proxy_compose_and_prometheus_name_the_same_replicas() -> None:
    servers = {name for name in COMPOSE["services"] if name.startswith("replica-")}
    assert set(REPLICAS) == servers
    for name in servers:
        environment = COMPOSE["services"][name]["environment"]
        assert environment["LOOKM_REPLICA"] == name
        assert environment["LOOKM_HOST"] == "0.0.0.0"
        assert environment["LOOKM_PORT"] == "8000"
        assert not COMPOSE["services"][name].get("ports"), "only the proxy is reached"
    assert COMPOSE["services"]["proxy"]["depends_on"].keys() == servers
    scrapes = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    assert set(scrapes[0]["static_configs"][0]["targets"]) == {f"{name}:8000" for name in servers}


def test_replicas_are_locked_down_as_the_one_server_is() -> None:
    one = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["server"]
    for name in REPLICAS:
        for setting in ("read_only", "cap_drop", "security_opt", "tmpfs", "stop_grace_period"):
            assert COMPOSE["services"][name][setting] == one[setting]
    proxy = COMPOSE["services"]["proxy"]
    assert proxy["read_only"]
    assert proxy["cap_drop"] == ["ALL"]
    assert not proxy["user"].startswith("0")
    assert proxy["ports"][0].startswith("${LOOKM_HOST:-127.0.0.1}:")


def test_mounted_files_exist_and_variables_are_in_env_example() -> None:
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", []):
            if volume.startswith("."):
                assert (FOLDER / volume.split(":")[0]).exists(), volume
    example = set(re.findall(r"^# (\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert set(re.findall(r"\$\{(\w+)", (FOLDER / "compose.yml").read_text())) <= example


def test_the_proxy_lets_bodies_and_waits_through_as_the_server_does() -> None:
    megabytes = int(re.search(r"client_max_body_size (\d+)m;", CONFIG)[1])
    assert megabytes * 2**20 == Settings.model_fields["max_body"].default
    assert "proxy_buffering off;" in CONFIG
    retried = re.search(r"proxy_next_upstream (.*);", CONFIG)[1].split()
    assert set(retried) == {"error", "timeout"}, "nothing that was sent is sent again"


NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
needs_nginx = [
    pytest.mark.e2e,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed (Debian: nginx-light)"),
]


class Cluster:
    """Three fake servers behind an nginx with our configuration, on loopback."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        flags = ("--model", "fake:step_s=0.02", "--threads", "1", "--replica")
        self.servers = {n: stack.enter_context(serving_process(*flags, n)) for n in REPLICAS}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        config = CONFIG.replace("/tmp/", f"{folder}/").replace("8080", f"127.0.0.1:{port}")
        for name, server in self.servers.items():
            config = config.replace(f"{name}:8000", server.url.removeprefix("http://"))
        (folder / "nginx.conf").write_text(config)
        command = [NGINX, "-p", folder, "-c", folder / "nginx.conf", "-g", "daemon off;"]
        nginx = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        stack.callback(nginx.wait, 30)
        stack.callback(nginx.terminate)
        self.url = f"http://127.0.0.1:{port}"
        deadline_s = time.monotonic() + 30
        while not self._up() and time.monotonic() < deadline_s:
            time.sleep(0.05)

    def _up(self) -> bool:
        try:
            return httpx.get(f"{self.url}/healthz").status_code == 200
        except httpx.HTTPError:
            return False

    def ask(self, session: str | None = None) -> str:
        """Who answered."""
        headers = {"x-session-id": session} if session else {}
        answer = httpx.post(self.url + CHAT, json=chat(max_tokens=1), headers=headers, timeout=60)
        assert answer.status_code == 200
        assert answer.headers.get("x-session-id") == session
        return answer.headers["x-lookm-replica"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(tmp_path_factory.mktemp("nginx"), stack)


def _kill(server: ServerProcess) -> None:
    server.process.kill()
    server.process.wait(30)


class TestBehindNginx:
    """In this order: the last one kills a replica."""

    pytestmark = needs_nginx

    def test_conversations_keep_to_their_replica_and_use_all_of_them(
        self, cluster: Cluster
    ) -> None:
        homes = {session: cluster.ask(session) for session in map("chat-{}".format, range(12))}
        for _ in range(3):
            assert {session: cluster.ask(session) for session in homes} == homes
        assert set(homes.values()) == set(REPLICAS)
        assert len(Counter(cluster.ask() for _ in range(12))) > 1, "without a session: spread"

    def test_what_a_replica_does_not_have_is_told(self, cluster: Cluster) -> None:
        named = chat(image("sha256:" + "0" * 64))
        answer = httpx.post(cluster.url + CHAT, json=named)
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "image_not_found"
        assert "another replica" in answer.json()["error"]["message"]
        assert answer.headers["x-lookm-replica"] in REPLICAS
        assert httpx.get(f"{cluster.url}/metrics").status_code == 404

    def test_tokens_come_as_they_are_made(self, cluster: Cluster) -> None:
        body = chat(max_tokens=60, stream=True)
        begun_s = time.monotonic()
        with httpx.stream("POST", cluster.url + CHAT, json=body, timeout=60) as answer:
            came_s = [time.monotonic() - begun_s for line in answer.iter_lines() if line]
        assert len(came_s) > 60
        assert came_s[2] < came_s[-1] / 2

    def test_a_dead_replicas_conversations_go_on_elsewhere_and_others_stay(
        self, cluster: Cluster
    ) -> None:
        homes = {session: cluster.ask(session) for session in map("chat-{}".format, range(12))}
        dead = homes["chat-0"]
        _kill(cluster.servers[dead])
        for _ in range(2):
            now = {session: cluster.ask(session) for session in homes}
            assert dead not in now.values()
            for session, home in homes.items():
                assert home == dead or now[session] == home
