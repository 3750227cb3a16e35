"""Every checkpoint served once, for all tests of this folder: `make families`.

`--families-json FILE`: how many answers were compared, and equal, with where the numbers come from.
"""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lookm.bench.provenance import provenance
from tests.families.cases import CASES
from tests.families.served import ROWS, Served, checkpoint
from tests.server.process import serving_process

HERE = Path(__file__).parent
TIMEOUT_S = 600  # the first test of a checkpoint waits for its server
FLAGS = ("--device", "cpu", "--kv-cache-memory", "64MiB")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--families-json", type=Path, default=None, help="write the counts here")


def pytest_collection_modifyitems(items: Any) -> None:
    """Mark what is in this folder, and skip it where processors cannot load."""
    missing = pytest.mark.skip(reason="no torchvision: make families has an environment with it")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.families)
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))
            if importlib.util.find_spec("torchvision") is None:
                item.add_marker(missing)


@pytest.fixture(scope="session", params=CASES, ids=lambda case: case.name)
def served(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("checkpoint")
    model, processor = checkpoint(request.param, folder)
    with serving_process("--model", str(folder), *FLAGS, *request.param.flags) as server:
        yield Served(request.param, server, model, processor)


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("--families-json")
    if path is not None and ROWS:
        report = {"kind": "families", **provenance("make families"), "rows": list(ROWS.values())}
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
