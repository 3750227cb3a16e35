"""The package as one meets it: its names, and `python -m lookm` on pictures from disk."""

from pathlib import Path

from PIL import Image

import lookm
from lookm.__main__ import upright


def test_a_picture_is_turned_as_its_exif_says_and_stands_on_white(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held a quarter turn to the left
    Image.new("RGB", (40, 20), "red").save(tmp_path / "photo.jpg", exif=turned)
    assert upright(tmp_path / "photo.jpg").size == (20, 40)
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert upright(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)


def test_every_public_name_is_listed_and_can_be_had() -> None:
    assert set(lookm.__all__) <= set(dir(lookm))
    assert all(getattr(lookm, name) is not None for name in lookm.__all__)
