"""`--faults-json FILE`: what the attacks of this run measured, with where the numbers come from."""

import json
from pathlib import Path

import pytest

from lookm.bench.provenance import provenance
from tests.faults.watch import ROWS


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults-json", type=Path, default=None, help="write the figures here")


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("--faults-json")
    if path is not None and ROWS:
        report = {"kind": "faults", **provenance("make faults"), "rows": ROWS}
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
