"""`lookm.show`: what is clear was kept, what is grey was dropped, what is striped was merged."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import lookm
from lookm import RequestError, positions
from lookm.kept import KeptPositions
from lookm.models.places import PlacedGrid, PlacedImage
from lookm.picture import legend, panels, shares_of
from lookm.positions import Positions, TextRun
from tests.lookm.models.test_processor import Config
from tests.lookm.models.toy_processors import PROCESSORS
from tests.lookm.models.toys import TOYS
from tests.lookm.test_compressed_generate import plain_answer
from tests.lookm.tiny import IMAGE, random_prompt, tiny_llava

SIDE = 4  # patches a side
SIZE = (80, 40)
NUM_TOKENS = 2 + SIDE**2 + 3


def of(kept: Any, merged: Any = None, box: Any = (0, 0, *SIZE), unknown: int = 0) -> Positions:
    """A prompt of two words, one image, three words; `kept` and `merged` bool `[L, K, T]`."""
    bits = KeptPositions(
        NUM_TOKENS,
        np.packbits(kept, axis=-1),
        None if merged is None else np.packbits(merged, axis=-1),
        unknown,
    )
    grid = PlacedGrid(2, SIDE, SIDE, SIDE, box)
    image = PlacedImage(*SIZE, 2, SIDE**2, (grid,))
    after = TextRun(2 + SIDE**2, (" what", "\n", "<b>?"))
    return Positions(bits, (image,), (TextRun(0, ("<s>", "a")), after))


def masks(num_layers: int = 2, num_heads: int = 2) -> Any:
    return np.zeros((2, num_layers, num_heads, NUM_TOKENS), dtype=bool)


def picture() -> Image.Image:
    """Light, with a red corner where the first patch of the last row is."""
    made = Image.new("RGB", SIZE, (200, 190, 180))
    ImageDraw.Draw(made).rectangle([0, 30, 19, 39], (220, 30, 30))
    return made


def pixels_of(panel: Image.Image, row: int, column: int) -> Any:
    """The middle of a patch, `[N, 3]`."""
    width, height = panel.size[0] / SIDE, panel.size[1] / SIDE
    middle = (column + 0.3) * width, (row + 0.3) * height
    cut = panel.crop(
        (*map(int, middle), int(middle[0] + width * 0.4), int(middle[1] + height * 0.4))
    )
    return np.asarray(cut, dtype=float).reshape(-1, 3)


def patch(panel: Image.Image, row: int, column: int) -> Any:
    """The mean colour in the middle of a patch."""
    return pixels_of(panel, row, column).mean(axis=0)


def panel_of(found: Positions, **which: Any) -> Image.Image:
    (one,) = panels(found, [picture()], shares_of(found, **which), side=320)
    return one.image


def test_the_patch_that_was_kept_is_clear_where_the_picture_has_it() -> None:
    kept, merged = masks()
    kept[..., 2 + 3 * SIDE] = True  # the red corner
    merged[..., 2:10] = True
    panel = panel_of(of(kept, merged))
    assert np.abs(patch(panel, 3, 0) - (220, 30, 30)).max() < 8
    merged_N, dropped_N = pixels_of(panel, 0, 0), pixels_of(panel, 2, 3)
    assert dropped_N.std(axis=0).max() < 2, "dropped: a veil, and nothing else"
    assert np.abs(dropped_N[0] - (136, 133, 128)).max() < 8
    assert merged_N[:, 0].max() > dropped_N[0, 0] + 60, "merged: amber stripes"
    assert np.abs(merged_N - dropped_N[0]).max(axis=1).min() < 8, "and the same veil between"


def test_the_more_layers_keep_a_patch_the_clearer_it_is() -> None:
    kept, _ = masks(num_layers=4, num_heads=1)
    for row in range(SIDE):
        kept[:row, :, 2 + row * SIDE + 1] = True  # row 0: none, row 3: three of four
    light = [patch(panel_of(of(kept)), row, 1).mean() for row in range(SIDE)]
    assert light == sorted(light)
    assert np.diff(light).min() > 5
    assert light[1] - light[0] > light[3] - light[2], "few are told from none"
    assert patch(panel_of(of(kept), layer=0), 3, 1).mean() > 185
    assert patch(panel_of(of(kept), layer=3), 3, 1).mean() < 140


def test_a_layer_or_a_head_that_is_not_there_is_refused() -> None:
    found = of(masks()[0])
    for which in ({"layer": 2}, {"layer": -1}, {"head": 2}):
        with pytest.raises(RequestError, match="there are 0 to 1"):
            lookm.show(found, [picture()], **which)


def test_what_the_model_did_not_see_is_hatched() -> None:
    kept, _ = masks()
    seen = of(kept | True, box=(20, 0, 60, 40))
    panel = panel_of(seen)
    outside, inside = (np.asarray(panel.crop(box)) for box in ((4, 18, 76, 22), (84, 18, 116, 22)))
    assert outside.std(axis=1).mean() > 5 * inside.std(axis=1).mean()


def test_a_sheet_is_a_png_with_all_of_it() -> None:
    kept, merged = masks()
    kept[..., :9] = True
    whole = lookm.show(of(kept, ~kept), [picture()])
    assert whole.width == 960
    file = io.BytesIO()
    again = lookm.show(positions.encode(of(kept, ~kept)), [picture()], path=file)
    assert again.tobytes() == whole.tobytes(), "an answer says as much"
    assert Image.open(file).format == "PNG"
    assert lookm.show(of(kept, unknown=4), [picture()]).height > whole.height - 60
    other = lookm.show(of(merged), [picture()])
    assert other.tobytes() != whole.tobytes()


def test_pictures_must_be_those_of_the_prompt() -> None:
    found = of(masks()[0])
    with pytest.raises(RequestError, match="1 images, 2 are given"):
        lookm.show(found, [picture(), picture()])
    with pytest.raises(RequestError, match="80 x 40 pixels, the one given is 40 x 80"):
        lookm.show(found, [picture().rotate(90, expand=True)])
    assert lookm.show(found, [picture().resize((160, 80))])


def test_a_font_that_is_none_is_refused(tmp_path: Any) -> None:
    with pytest.raises(RequestError, match="is no font"):
        lookm.show(of(masks()[0]), font=str(tmp_path / "none.ttf"))


def test_what_compress_and_compressing_return_is_shown() -> None:
    query, key = torch.randn(4, 30, 8), torch.randn(2, 30, 8)
    is_image = torch.arange(30) < 20
    one = lookm.compress(query, key, key, is_image, "look-m@0.2")
    assert lookm.show(one).height > 100
    made = random_prompt(2, seed=1)
    _, cache = plain_answer(tiny_llava(), made, "d2o@0.3")
    kept = cache.positions
    assert [int(n) for n in kept.kept_LKT.sum(-1)[:, 0]] == cache.kept_tokens
    assert lookm.show(cache, layer=2).height > 100
    with pytest.raises(RequestError, match="give ids"):
        lookm.show(cache, [picture()])
    with lookm.compressing(tiny_llava(), "h2o", torch.tensor(made.ids) == IMAGE) as unused:
        pass
    with pytest.raises(RequestError, match="not been through"):
        lookm.show(unused)


def test_with_ids_and_a_processor_the_images_are_found() -> None:
    hf_processor = PROCESSORS["llava"]()
    token = hf_processor.tokenizer.convert_tokens_to_ids("<image>")
    config = Config(TOYS["llava"].row.model_type, token)
    processor = lookm.Processor(hf_processor, config, name="llava")
    content = [{"type": "image"}, {"type": "text", "text": "What?"}]
    image = processor.image(picture(), "picture")
    ids = processor.prompt([{"role": "user", "content": content}], [image])
    bits = KeptPositions(len(ids), np.packbits(np.ones((1, 1, len(ids)), dtype=bool), axis=-1))
    event = lookm.TokenEvent("a", None, "", 1, "stop", positions=bits)
    with_both = lookm.show(event, [picture()], ids=ids, processor=processor)
    assert with_both.height > lookm.show(event).height + 200
    with pytest.raises(RequestError, match="for a prompt of"):
        lookm.show(event, [picture()], ids=ids[1:], processor=processor)


def test_the_legend_names_what_is_there_and_nothing_else() -> None:
    kept, _ = masks()

    def named(found: Positions, *, cropped: bool = False, **which: Any) -> list[str]:
        return [text for _, text in legend.entries(shares_of(found, **which), cropped=cropped)]

    assert named(of(kept)) == [legend.CLEAR, legend.PARTLY, legend.DROPPED]
    assert named(of(kept), layer=0, head=0) == [legend.CLEAR, legend.DROPPED]
    both = named(of(kept, kept, unknown=3), cropped=True)
    assert both[3:] == [legend.MERGED, legend.UNKNOWN, legend.UNSEEN]
