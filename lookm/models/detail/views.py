"""Pictures in views of one size, fewer or more of them.

    tiles    a bound on the number of tiles               InternVL
    splits   an edge to grow to, cut into tiles           Idefics3, SmolVLM
    crops    a whole view, and crops of long pictures     Gemma 3

Knows how processors cut; no pixels.
"""

import math
from collections.abc import Iterator

from lookm.models.detail.choice import Step
from lookm.models.detail.ladder import Asked, Ladder, Size


def _tiles(asked: Asked) -> Iterator[Step]:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    size, view = asked.setting("size"), int(asked.processor.image_seq_length)
    least, most = int(asked.setting("min_patches")), int(asked.setting("max_patches"))
    own_crops, fewest = bool(asked.setting("crop_to_patches")), None
    for bound in range(most, 0, -1):
        columns, rows = get_optimal_tiled_canvas(
            asked.size[::-1], (size["height"], size["width"]), min(least, bound), bound
        )
        views = 1 if bound == 1 or columns * rows == 1 else int(columns * rows) + 1
        if fewest is not None and views >= fewest:
            continue
        is_own = bound == most if own_crops else views == 1
        settings = {"crop_to_patches": True, "min_patches": min(least, bound), "max_patches": bound}
        yield Step(
            views * view,
            views * size["height"] * size["width"],
            "" if is_own else f"{views} views",
            settings={} if is_own else settings,
        )
        fewest = views
        if views == 1:
            return


def _splits(asked: Asked) -> Iterator[Step]:
    view, tile = int(asked.processor.image_seq_len), asked.setting("max_image_size")["longest_edge"]
    own, splits = asked.setting("size")["longest_edge"], bool(asked.setting("do_image_splitting"))
    fewest = None
    for edge in (own, *range((own - 1) // tile * tile, 0, -tile)):
        views = _split_views(asked.size, edge, tile)
        if views == 1 or (fewest is not None and views >= fewest):
            continue
        is_own = splits and edge == own
        settings = {"do_image_splitting": True, "size": {"longest_edge": edge}}
        name = "" if is_own else f"{views} views"
        yield Step(views * view, views * tile**2, name, settings={} if is_own else settings)
        fewest = views
    is_own = not splits or fewest is None
    settings = {"do_image_splitting": False}
    yield Step(view, tile**2, "" if is_own else "1 view", settings={} if is_own else settings)


def _split_views(size: Size, edge: int, tile: int) -> int:
    """Tiles and whole views of a picture that is resized to a longest edge, then to whole tiles."""
    from transformers.models.idefics3.image_processing_pil_idefics3 import (
        MAX_IMAGE_SIZE,
        _resize_output_size_rescale_to_max_len,
        _resize_output_size_scale_below_upper_bound,
    )

    height, width = _resize_output_size_rescale_to_max_len(size[1], size[0], max_len=edge)
    height, width = _resize_output_size_scale_below_upper_bound(
        height, width, max_len=MAX_IMAGE_SIZE
    )
    aspect = width / height
    num_long = math.ceil(max(width, height) / tile)
    grown = int(num_long * tile / aspect) if width >= height else int(num_long * tile * aspect)
    num_short = math.ceil(grown / tile)
    return 1 if num_long * num_short == 1 else num_long * num_short + 1


def _crops(asked: Asked) -> Iterator[Step]:
    view, own = _one_view(asked), bool(asked.setting("do_pan_and_scan"))
    size = asked.setting("size")
    most, fewest = int(asked.setting("pan_and_scan_max_num_crops")), None
    for bound in range(most, 1, -1):
        crops = _num_crops(asked, bound)
        if crops == 0 or (fewest is not None and crops >= fewest):
            continue
        is_own = own and bound == most
        settings = {"do_pan_and_scan": True, "pan_and_scan_max_num_crops": bound}
        yield Step(
            (crops + 1) * view,
            (crops + 1) * size["height"] * size["width"],
            "" if is_own else f"{crops} crops",
            settings={} if is_own else settings,
        )
        fewest = crops
    is_own = not own or fewest is None
    yield Step(
        view,
        size["height"] * size["width"],
        "" if is_own else "no crops",
        settings={} if is_own else {"do_pan_and_scan": False},
    )


def _num_crops(asked: Asked, bound: int) -> int:
    """Of Gemma 3's pan and scan."""
    import numpy as np
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    width, height = asked.size
    names = ("min_crop_size", "min_ratio_to_activate")
    least, ratio = (asked.setting(f"pan_and_scan_{name}") for name in names)
    picture = np.broadcast_to(np.uint8(0), (3, height, width))
    return len(Gemma3ImageProcessorPil.pan_and_scan(None, picture, least, bound, ratio))


def _one_view(asked: Asked) -> int:
    return int(asked.processor.image_seq_length)


tiles = Ladder(
    _tiles,
    _one_view,
    "one view",
    "as `auto`; tiles, where the checkpoint has them off",
    "fewer tiles (`max_patches`), down to one view; less is refused",
)
splits = Ladder(
    _splits,
    lambda asked: int(asked.processor.image_seq_len),
    "one view",
    "as `auto`; tiles, where the checkpoint has them off",
    "fewer tiles (a smaller longest edge), down to one view; less is refused",
)
crops = Ladder(
    _crops,
    _one_view,
    "one view",
    "pan and scan: crops beside the whole, of pictures that are not nearly square",
    "fewer crops, down to one view; less is refused",
)
