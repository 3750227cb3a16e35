"""The front door on machines that are not quite ready."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OLD = "import sys; sys.version_info = (3, 10, 12); exec(sys.argv[1])"


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
def test_a_python_that_is_too_old_is_told_and_leaves_no_venv(tmp_path: Path) -> None:
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{OLD}' \"$2\"\n")
    python.chmod(0o755)
    command = ["make", "serve", f"PYTHON={python}"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert run.returncode != 0
    assert "Python 3.10 is too old: make serve PYTHON=python3.11, or newer" in run.stderr
    assert not (tmp_path / ".venv").exists()
