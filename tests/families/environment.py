"""`python -m tests.families.environment DIR`: an environment in which every processor loads.

What requirements.lock pins is taken from the environment that runs this; on top of it come
torchvision and num2words. Builds of torchvision for another torch than ours do not load: its
operators (boxes, codecs) are registered for a library that is not there. Images are resized without
them, so those registrations are left out then.
"""

import sys
from pathlib import Path

from tests.overlay import Overlay

TORCHVISION = "torchvision==0.28.0"  # the release beside the torch that requirements.lock pins
OTHERS = ("num2words==0.5.14", "docopt==0.6.2")
WITHOUT_OPERATORS = (
    "import sys, types; "
    'sys.modules["torchvision._autograd_registrations"] = '
    'sys.modules["torchvision._meta_registrations"] = types.ModuleType("no_operators")\n'
)


def make(folder: Path) -> None:
    """Make or complete the environment in `folder`."""
    overlay = Overlay(folder)
    overlay.install([TORCHVISION, *OTHERS], "--no-deps")
    if not overlay.runs("import torchvision"):
        (overlay.site / "torchvision_without_operators.pth").write_text(WITHOUT_OPERATORS)
    assert overlay.runs("import torchvision, num2words")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
