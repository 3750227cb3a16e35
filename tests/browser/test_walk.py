"""A person's walk over the page, with the demo model behind it."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import lookm
from lookm.demo.scenes import Scene, render
from tests.browser.chromium import Visit
from tests.server.process import ServerProcess
from tests.server.requests import data_url, image, text

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

QUESTION = "List the colours of all images."
POLICIES = ("look-m@0.3", "snapkv@0.2")
SIDE = 8  # patches of the demo model's images


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def with_corner(width: int, height: int, corner: tuple[int, int, int, int]) -> Image.Image:
    """White, but for one red corner."""
    picture = Image.new("RGB", (width, height), "white")
    picture.paste((220, 0, 0), corner)
    return picture


def choose(visit: Visit, *policies: str) -> None:
    for number, policy in enumerate(policies, 1):
        visit.page.get_by_label(f"Policy {number}", exact=True).fill(policy)


def truth(server: ServerProcess, policy: str, pictures: list[bytes]) -> Any:
    """What the server says of the page's request to anybody who sends it."""
    content = [*(image(data_url(each)) for each in pictures), text(QUESTION)]
    answer = server.client.chat.completions.create(
        model="llava-demo",
        messages=[{"role": "user", "content": content}],
        max_tokens=4,
        temperature=0,
        extra_body={
            "kv_cache": {
                "method": policy.split("@")[0],
                "keep": float(policy.split("@")[1]),
                "positions": True,
            }
        },
    )
    return lookm.positions.decode(answer)


def test_a_walk(visit: Visit, demo_site: ServerProcess, tmp_path: Path) -> None:
    pictures = [
        png(render(Scene(kind="circle", colour="red"))),
        png(render(Scene(kind="star", colour="blue"))),
    ]
    page = visit.open(demo_site.url)
    assert page.locator("#model").inner_text() == "llava-demo"
    visit.drop([("one.png", "image/png", pictures[0]), ("two.png", "image/png", pictures[1])])
    choose(visit, *POLICIES)
    visit.ask(QUESTION)
    answers = visit.answers()
    assert len(answers) == 2
    assert answers[0] == "Image 1 is red and image 2 is blue."
    figures = page.locator(".figures").first.inner_text()
    for name in ("First token", "Speed", "Kept", "Cache"):
        assert name in figures

    known = [truth(demo_site, policy, pictures) for policy in POLICIES]
    canvases = page.locator("canvas")
    assert canvases.count() == 4
    row, column = 2, 5
    for number, (positions, at) in enumerate((p, i) for p in known for i in range(2)):
        token = positions.images[at].grids[0].first_token + row * SIDE + column
        hover(page, canvases.nth(number), row, column)
        tip = page.locator("#tip").inner_text()
        assert f"Image {at + 1}, row {row + 1}, column {column + 1} (token {token}): " in tip
        count = int(positions.kept_LKT[:, :, token].sum())
        assert f"kept in {count} of {positions.kept_LKT[..., 0].size}" in tip

    layer = page.get_by_label("Layer")
    layer.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert page.locator("output").inner_text() == "layer 3 of 6"
    page.get_by_label("KV head").select_option("2")
    positions = known[1]
    token = positions.images[1].grids[0].first_token + row * SIDE + column
    hover(page, canvases.nth(3), row, column)
    fate = page.locator("#tip").inner_text().split(": ")[1]
    kept = positions.kept_LKT[2, 1, token]
    assert fate == ("kept" if kept else "dropped"), "snapkv merges nothing"
    words = page.locator(".kept").nth(1).locator(".word")
    shaded = words.evaluate_all("words => words.map(w => w.style.getPropertyValue('--dropped'))")
    tokens = [r.first_token + at for r in positions.text for at in range(len(r.tokens))]
    assert [float(each) for each in shaded] == [1 - positions.kept_LKT[2, 1, t] for t in tokens]

    with page.expect_download() as download:
        page.get_by_role("button", name="Download the picture of snapkv@0.2 as PNG").click()
    assert download.value.suggested_filename == "kept-snapkv@0.2-layer-3-of-6-KV-head-2.png"
    download.value.save_as(tmp_path / "kept.png")
    with Image.open(tmp_path / "kept.png") as saved:
        assert saved.format == "PNG"
        assert min(saved.size) > 300


@pytest.mark.parametrize("site", ["demo", "llava_next", "idefics3"], indirect=True)
def test_the_overlay_lies_where_the_image_has_it(visit: Visit, site: ServerProcess) -> None:
    """One grid, or a view of the whole and one of its tiles."""
    width, height = 480, 360
    corner = (width - 60, height - 45, width, height)
    picture = png(with_corner(width, height, corner))
    page = visit.open(site.url)
    choose(visit, "full", "random@0.3")
    visit.drop([("corner.png", "image/png", picture)])
    visit.ask("What is in image 1?")
    positions = truth_of_one(site, picture)
    (placed,) = positions.images
    share_T = positions.kept_LKT.mean(axis=(0, 1))
    shown = views(placed.grids)
    assert sum(len(view) for view in shown) == len(placed.grids)
    assert page.locator("canvas").count() == 2 * len(shown)
    for number, view in enumerate(shown):
        full, veiled = (drawn(page, number + len(shown) * of, view, placed) for of in range(2))
        is_red = (full[..., 0] > 180) & (full[..., 1] < 60)
        rows, columns = np.nonzero(is_red)
        assert abs(int(columns.min()) - corner[0]) <= 1
        assert abs(int(rows.min()) - corner[1]) <= 1
        seen = np.zeros_like(is_red)  # what a grid does not cover is hatched
        for grid in view:
            left, top, right, bottom = (max(0, round(edge)) for edge in grid.box)
            seen[top : bottom - 1, left : right - 1] = True
        corner_seen = seen[corner[1] + 2 :, corner[0] + 2 :]
        assert corner_seen.mean() > 0.4
        assert is_red[corner[1] + 2 :, corner[0] + 2 :][corner_seen].all(), "it reaches the corner"
        num_seen = sum(shaded_as_said(grid, share_T, full, veiled) for grid in view)
        assert num_seen >= 4


def shaded_as_said(grid: Any, share_T: Any, full: np.ndarray, veiled: np.ndarray) -> int:
    """How many patches of a grid have their middle inside the image; each is as clear as its
    token's share of layers and heads says."""
    left, top, right, bottom = grid.box
    num_seen = 0
    for row in range(grid.rows):
        for column in range(grid.columns):
            x = left + (column + 0.5) * (right - left) / grid.columns
            y = top + (row + 0.5) * (bottom - top) / grid.rows
            if not (0 <= x < full.shape[1] and 0 <= y < full.shape[0]):
                continue
            share = share_T[grid.first_token + row * grid.row_stride + column]
            clear = full[int(y), int(x)].astype(float)
            opacity = 0.86 * (1 - np.sqrt(share))
            expected = clear * (1 - opacity) + np.array([126, 124, 120]) * opacity
            assert np.abs(veiled[int(y), int(x)] - expected).max() < 6, (row, column)
            num_seen += 1
    return num_seen


def views(grids: Any) -> list[list[Any]]:
    """The whole first or last, and the tiles, which do not lie upon each other."""
    areas = [(g.box[2] - g.box[0]) * (g.box[3] - g.box[1]) for g in grids]
    if len(grids) == 1:
        return [list(grids)]
    whole = areas.index(max(areas))
    tiles = [grid for at, grid in enumerate(grids) if at != whole]
    return [[grids[whole]], tiles] if whole == 0 else [tiles, [grids[whole]]]


def truth_of_one(server: ServerProcess, picture: bytes) -> Any:
    """Under `random@0.3`, whose choice is seeded."""
    content = [image(data_url(picture)), text("What is in image 1?")]
    answer = server.client.chat.completions.create(
        model=server.client.models.list().data[0].id,
        messages=[{"role": "user", "content": content}],
        max_tokens=4,
        temperature=0,
        extra_body={"kv_cache": {"method": "random", "keep": 0.3, "positions": True}},
    )
    return lookm.positions.decode(answer)


def drawn(page: Any, number: int, view: Any, placed: Any) -> np.ndarray:
    """A canvas in pixels of its image, `[height, width, 3]`.

    It also shows where the grids of its view reach beyond the image.
    """
    script = """(canvas) => canvas.toDataURL("image/png").split(",")[1]"""
    data = page.locator("canvas").nth(number).evaluate(script)
    picture = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
    left, top = (min(0, *(grid.box[side] for grid in view), 0) for side in (0, 1))
    right = max(placed.width, *(grid.box[2] for grid in view), 0)
    bottom = max(placed.height, *(grid.box[3] for grid in view), 0)
    size = round(right - left), round(bottom - top)
    whole = np.asarray(picture.resize(size, Image.Resampling.NEAREST))
    x, y = round(-left), round(-top)
    return whole[y : y + placed.height, x : x + placed.width]


def hover(page: Any, canvas: Any, row: int, column: int) -> None:
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.evaluate("y => window.scrollBy(0, y)", box["y"] - 200)
    box = canvas.bounding_box()
    page.mouse.move(
        box["x"] + box["width"] * (column + 0.5) / SIDE,
        box["y"] + box["height"] * (row + 0.5) / SIDE,
    )
