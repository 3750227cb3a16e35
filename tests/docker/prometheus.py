"""A real Prometheus, with this repository's rules, that scrapes one server."""

import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.docker.files import DOCKER

SCRAPE_S = 0.25
START_S = 30.0


class Prometheus:
    """Debian's binary on a free port. `query` is an instant query."""

    def __init__(self, binary: str, target_url: str, folder: Path) -> None:
        config = yaml.safe_load((DOCKER / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "250ms", "evaluation_interval": "250ms"}
        config["rule_files"] = [str(DOCKER / "prometheus" / "alerts.yml")]
        config["scrape_configs"][0]["static_configs"] = [
            {"targets": [target_url.removeprefix("http://")]}
        ]
        config["scrape_configs"][0]["authorization"] = {"credentials": "none"}
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.url = f"http://{address}"
        self._log = (folder / "log").open("w")
        self.process = subprocess.Popen(
            [
                binary,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=self._log,
            stderr=self._log,
        )

    def query(self, expr: str, at_s: float | None = None) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each sample. Raises where Prometheus refuses the query."""
        params: dict[str, Any] = {"query": expr} | ({} if at_s is None else {"time": at_s})
        answer = httpx.get(f"{self.url}/api/v1/query", params=params).json()
        assert answer["status"] == "success", (expr, answer)
        return [(s["metric"], float(s["value"][1])) for s in answer["data"]["result"]]

    def value(self, expr: str, at_s: float | None = None) -> float:
        """The value of a query with one sample."""
        ((_, value),) = self.query(expr, at_s)
        return value

    def wait_for(self, expr: str) -> float:
        """Until the query has a sample; the moment it had."""
        deadline_s = time.monotonic() + START_S
        while time.monotonic() < deadline_s:
            if self._is_ready() and self.query(expr):
                return time.time()
            time.sleep(SCRAPE_S / 5)
        raise AssertionError(f"no sample of {expr} in {START_S} s")

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, "Prometheus ended"
        try:
            return httpx.get(f"{self.url}/-/ready").status_code == 200
        except httpx.HTTPError:  # not listening yet
            return False

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)
        self._log.close()
