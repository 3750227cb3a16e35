"""`python -m tests.families.environment DIR`: an environment in which every processor loads.

What requirements.lock pins is taken from the environment that runs this; on top of it come
torchvision and num2words. Builds of torchvision for another torch than ours do not load: its
operators (boxes, codecs) are registered for a library that is not there. Images are resized without
them, so those registrations are left out then.
"""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

TORCHVISION = "torchvision==0.28.0"  # the release beside the torch that requirements.lock pins
OTHERS = ("num2words==0.5.14", "docopt==0.6.2")
WITHOUT_OPERATORS = (
    "import sys, types; "
    'sys.modules["torchvision._autograd_registrations"] = '
    'sys.modules["torchvision._meta_registrations"] = types.ModuleType("no_operators")\n'
)


def make(folder: Path) -> None:
    """Make or complete the environment in `folder`."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "beneath.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = (str(python), "-m", "pip", "install", "--quiet", "--no-deps")
    subprocess.run([*pip, TORCHVISION, *OTHERS], check=True)
    if subprocess.run([str(python), "-c", "import torchvision"], capture_output=True).returncode:
        (site / "torchvision_without_operators.pth").write_text(WITHOUT_OPERATORS)
    subprocess.run([str(python), "-c", "import torchvision, num2words"], check=True)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
