"""`make screenshot`: README's picture of the page, from a server with the demo model."""

import io
from pathlib import Path

from PIL import Image

from lookm.demo.scenes import Scene, render
from tests.browser.chromium import Visit, chromium_or_reason, opened
from tests.server.process import serving_process

PATH = Path(__file__).parents[2] / "docs" / "playground.png"
SCENES = {
    "left.png": Scene(kind="star", colour="blue", x=0.3, y=0.35, size=0.45, background="gradient"),
    "right.png": Scene(kind="heart", colour="red", x=0.65, y=0.6, size=0.5, background="yellow"),
}
QUESTION = "Describe all images."
POLICIES = ("look-m-plus@0.3", "snapkv@0.2")
CHROME_PX = 20


def main() -> None:
    """Writes it."""
    reason = chromium_or_reason()[1]
    if reason:
        raise SystemExit(f"no screenshot: {reason}")
    with serving_process() as server, opened() as browser, Visit.on(browser, 1280, 1000) as visit:
        page = visit.open(server.url)
        visit.drop([(name, "image/png", png(scene)) for name, scene in SCENES.items()])
        for number, policy in enumerate(POLICIES, 1):
            page.get_by_label(f"Policy {number}", exact=True).fill(policy)
        visit.ask(QUESTION)
        height = page.locator(".turn").bounding_box()["height"]
        composer = page.locator("#composer").bounding_box()["height"]
        width = 1280
        page.set_viewport_size({"width": width, "height": round(height + composer + CHROME_PX)})
        page.evaluate("scrollTo(0, 0)")
        page.get_by_label("Question", exact=True).evaluate("question => question.blur()")
        page.locator("canvas").nth(3).hover(position={"x": 60, "y": 60})
        shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    shot.quantize(256, dither=Image.Dither.NONE).save(PATH, optimize=True)
    print(f"{PATH}: {PATH.stat().st_size // 1000} kB")


def png(scene: Scene) -> bytes:
    buffer = io.BytesIO()
    render(scene).save(buffer, "PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    main()
