"""Environments for tests that need more than the base install: laid over the one that runs this."""

import subprocess
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path


class Overlay:
    """A virtual environment in `folder`, made or completed; beneath it the one that runs this."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=True)
        self.python = folder / "bin" / "python"
        (self.site,) = folder.glob("lib/python*/site-packages")
        (self.site / "beneath.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def install(self, requirements: Sequence[str], *options: str) -> None:
        """With pip, whose `options` these are."""
        pip = (str(self.python), "-m", "pip", "install", "--quiet", *options)
        subprocess.run([*pip, *requirements], check=True)

    def runs(self, code: str) -> bool:
        """Whether this Python code runs there."""
        command = [str(self.python), "-c", code]
        return subprocess.run(command, capture_output=True).returncode == 0
