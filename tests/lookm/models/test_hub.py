"""Hub names against a hub on this machine, in a process of their own: its address is an import's.

What is refused says which of network, permission and space is missing, and what is there is used.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from lookm.errors import ModelError
from lookm.models import hub as hub_module
from lookm.models.loading import fetch
from tests.fake_hub import COMMIT, FakeHub, fake_hub
from tests.lookm.models.hub_shape import WEIGHTS, edit, write

NAME = "org/toy"
CODE = """
import io, json, logging, os, sys
from huggingface_hub import constants
from lookm.errors import ModelError
from lookm.models import loading
for line in sys.stdin:
    asked = json.loads(line)
    constants.HF_HUB_CACHE = asked["cache"]
    constants.HF_HUB_OFFLINE = asked["offline"]
    os.environ.pop("HF_TOKEN", None)
    os.environ["HF_HUB_OFFLINE"] = str(int(asked["offline"]))
    if asked["token"]:
        os.environ["HF_TOKEN"] = asked["token"]
    log = io.StringIO()
    logging.basicConfig(level="INFO", stream=log, force=True)
    logging.getLogger("httpx2").setLevel("WARNING")
    try:
        outcome = "found " + str(getattr(loading, asked["call"])("org/toy").folder)
    except ModelError as error:
        outcome = f"refused: {error}"
    print(json.dumps(log.getvalue() + outcome), flush=True)
"""


class Asker:
    """A process that looks for `org/toy` on a hub on this machine."""

    def __init__(self, hub: FakeHub) -> None:
        own = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        self.hub = hub
        self.process = subprocess.Popen(
            [sys.executable, "-c", CODE],
            env={**os.environ, **own},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(
        self, home: Path, call: str = "fetch", *, offline: bool = False, token: str = ""
    ) -> str:
        """Its log and what came out, with its cache in `home`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.hub.sent_bytes.clear()
        asked = {"call": call, "cache": str(home), "offline": offline, "token": token}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        answer: str = json.loads(self.process.stdout.readline())
        return answer


@pytest.fixture(scope="module")
def ask() -> Iterator[Asker]:
    with fake_hub(NAME, Path()) as served:
        asker = Asker(served)
        yield asker
        asker.process.communicate(timeout=30)


@pytest.fixture
def hub(ask: Asker, tmp_path: Path) -> FakeHub:
    """It holds a whole checkpoint."""
    ask.hub.folder, ask.hub.refuse, ask.hub.cut = write(tmp_path / "repository"), None, None
    return ask.hub


def refusal(said: str) -> str:
    (line,) = [line for line in said.splitlines() if line.startswith("refused: ")]
    return line


def test_a_name_is_downloaded_once_and_then_found_without_a_network(
    hub: FakeHub, ask: Asker, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    said = ask(home)
    assert f"snapshots/{COMMIT}" in said
    assert "downloading org/toy: 1 files, 0.6 MiB" in said
    assert "downloaded org/toy in" in said
    assert hub.sent_bytes[WEIGHTS] == (hub.folder / WEIGHTS).stat().st_size
    for call, offline in (("fetch", False), ("find", False), ("fetch", True)):
        assert "found" in ask(home, call, offline=offline)
        assert WEIGHTS not in hub.sent_bytes
    hub.refuse = (403, "GatedRepo")
    said = ask(home)
    assert "found" in said
    assert "the cached files are used: org/toy is gated" in said


def test_a_download_that_was_cut_goes_on(hub: FakeHub, ask: Asker, tmp_path: Path) -> None:
    # The client writes 10 MiB at a time; what it has not written it asks for again.
    path = hub.folder / WEIGHTS
    save_file({**load_file(path), "beside.weight": torch.zeros(8 * 2**20)}, path)
    size = path.stat().st_size
    hub.cut = 25 * 2**20
    assert "found" in ask(tmp_path / "home")
    assert size <= hub.sent_bytes[WEIGHTS] < size + 10 * 2**20


def test_what_the_small_files_tell_costs_no_download(
    hub: FakeHub, ask: Asker, tmp_path: Path
) -> None:
    edit(
        hub.folder / "config.json",
        lambda config: config.update(quantization_config={"quant_method": "gptq"}),
    )
    assert "org/toy is quantised (gptq)" in refusal(ask(tmp_path / "home"))
    assert WEIGHTS not in hub.sent_bytes


def test_a_cache_that_holds_a_part_is_filled(hub: FakeHub, ask: Asker, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert "found" in ask(home, "find_config")
    assert set(hub.sent_bytes) <= {"", "config.json"}
    (snapshot,) = home.glob("*/snapshots/*")
    (snapshot / "config.json").unlink()
    assert "found" in ask(home, "find")


def test_pickles_beside_safetensors_are_left_there(
    hub: FakeHub, ask: Asker, tmp_path: Path
) -> None:
    (hub.folder / "pytorch_model.bin").write_bytes(b"PK")
    assert "found" in ask(tmp_path / "home")
    assert "pytorch_model.bin" not in hub.sent_bytes


def test_check_asks_for_headers_alone(hub: FakeHub, ask: Asker, tmp_path: Path) -> None:
    assert "found" in ask(tmp_path / "home", "find_headers")
    assert hub.sent_bytes[WEIGHTS] < (hub.folder / WEIGHTS).stat().st_size / 2


@pytest.mark.parametrize(
    ("status", "code", "given", "said"),
    [
        (403, "GatedRepo", {}, "is gated: accept its licence on its page, and set HF_TOKEN to"),
        (403, "GatedRepo", {"token": "hf_x"}, "look whether HF_TOKEN is a token of"),
        (401, "RepoNotFound", {}, "or it is private: look at the spelling; for a private one, set"),
        (500, "", {}, "answers with status 500"),
        (200, "", {"offline": True}, "HF_HUB_OFFLINE forbids to ask the hub; fill the cache"),
    ],
)
def test_without_permission_the_variable_is_named(
    hub: FakeHub,
    ask: Asker,
    tmp_path: Path,
    status: int,
    code: str,
    given: dict[str, Any],
    said: str,
) -> None:
    hub.refuse = (status, code)
    line = refusal(ask(tmp_path / "home", **given))
    assert "org/toy" in line
    assert said in line
    assert "hf_x" not in line


def test_without_a_network_the_address_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(ModelError, match=f"{url}.* cannot be reached: look at the network"):
        fetch(NAME)


def test_without_space_both_sizes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(2**30))
    hub_module._check_space(NAME, 2**29)
    with pytest.raises(ModelError, match=r"needs 14\.0 GiB in .*, which has 1\.0 GiB free"):
        hub_module._check_space(NAME, 14 * 2**30)
    message = str(hub_module._refused(NAME, OSError(28, "No space left on device")))
    assert "no space is left for org/toy" in message
