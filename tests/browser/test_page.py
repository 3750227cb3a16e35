"""The page under what may happen to it: keys, errors, broken streams, hostile words, narrowness."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.browser.answers import failing_stream, positions_of, stream
from tests.browser.chromium import PASTE, Browser, Visit
from tests.server.process import ServerProcess, serving_process
from tests.server.requests import png

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

HOSTILE = (
    "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"
    "</p><style>*{display:none}</style>&lt;b&gt;<svg onload=document.title='run'>"
)
ANSWERS = "**/v1/chat/completions"
RED, BLUE = png("red", (64, 64)), png("blue", (96, 64))


def answer_with(page: Any, *bodies: str) -> list[dict[str, Any]]:
    """Answer the page's next requests, one body each; returns what they ask, as they come."""
    asked: list[dict[str, Any]] = []

    def answer(route: Any) -> None:
        asked.append(json.loads(route.request.post_data))
        body = bodies[(len(asked) - 1) % len(bodies)]
        route.fulfill(content_type="text/event-stream", body=body)

    page.route(ANSWERS, answer)
    return asked


def one_policy(visit: Visit, policy: str) -> None:
    visit.page.get_by_label("Remove policy 2").click()
    visit.page.get_by_label("Policy 1", exact=True).fill(policy)


def small_positions() -> dict[str, Any]:
    """3 layers, 2 heads, 2 words and a tiled image: whole in 2 x 2, then 2 tiles of 2 x 2."""
    kept_LKT = np.zeros((3, 2, 2 + 4 + 10), dtype=bool)
    merged_LKT = np.zeros_like(kept_LKT)
    kept_LKT[:, :, 0] = True
    kept_LKT[1, 0, 2] = True
    merged_LKT[:, :, 3] = True
    grids = [
        {"first_token": 2, "rows": 2, "columns": 2, "row_stride": 2, "box": [0, 0, 96, 64]},
        {"first_token": 6, "rows": 2, "columns": 2, "row_stride": 3, "box": [0, 0, 48, 64]},
        {"first_token": 11, "rows": 2, "columns": 2, "row_stride": 2, "box": [48, 0, 96, 64]},
    ]
    image = {"width": 96, "height": 64, "first_token": 2, "num_tokens": 14, "grids": grids}
    text = [{"first_token": 0, "tokens": ["<s>", HOSTILE]}]
    return positions_of(kept_LKT, merged_LKT, [image], text)


def test_what_names_and_answers_hold_is_text(visit: Visit, fake_site: ServerProcess) -> None:
    page = visit.open(fake_site.url)
    title = page.title()
    answer_with(
        page,
        stream(HOSTILE, " one end", positions=small_positions()),
        stream(HOSTILE, " other end", positions=small_positions()),
    )
    visit.drop([(f"{HOSTILE}.png", "image/png", BLUE)])
    visit.drop([(f"{HOSTILE}.txt", "text/plain", b"no")])
    assert page.locator("#notice").inner_text() == f"Not an image: {HOSTILE}.txt"
    visit.ask(HOSTILE)
    assert visit.answers() == [f"{HOSTILE} one end", f"{HOSTILE} other end"]
    assert page.locator(".text mark").all_inner_texts() == ["one", "other"]
    assert page.locator(".question h2").inner_text() == HOSTILE
    assert f"{HOSTILE}.png" in page.locator("figcaption").first.inner_text()
    assert HOSTILE in page.locator(".words").first.inner_text()
    assert page.title() == title
    assert page.locator("main img[src=x], main script, main style, main svg, main b").count() == 0


def test_a_stream_that_breaks_keeps_what_came(visit: Visit, fake_site: ServerProcess) -> None:
    page = visit.open(fake_site.url)
    answer_with(
        page,
        stream("as far as it ", "came", done=False),
        failing_stream("so far", message="The worker died."),
    )
    visit.ask("What is it?")
    assert visit.answers() == ["as far as it came", "so far"]
    problems = page.get_by_role("alert").all_inner_texts()
    assert problems == [
        "The connection was lost before the answer's end.",
        "The worker died.",
    ]


def test_a_worker_that_fails_is_told_in_the_servers_words(
    visit: Visit, fake_site: ServerProcess
) -> None:
    page = visit.open(fake_site.url)
    one_policy(visit, "full")
    visit.ask("fake:error goes wrong")
    assert visit.answers() == ["word0 word1"]
    assert (
        page.get_by_role("alert").inner_text() == "The fake engine was asked to fail this request."
    )


def test_an_error_is_shown_in_words(visit: Visit, fake_site: ServerProcess) -> None:
    page = visit.open(fake_site.url)
    page.get_by_label("Policy 2", exact=True).fill("look-x@0.2")
    visit.ask("What is it?")
    assert visit.answers()[0].startswith("word0")
    assert "unknown method 'look-x': choose one of" in page.get_by_role("alert").inner_text()


def test_an_image_that_is_refused_spoils_no_later_question(
    visit: Visit, fake_site: ServerProcess
) -> None:
    page = visit.open(fake_site.url)
    visit.drop([("red.png", "image/png", RED), ("broken.png", "image/png", b"no image")])
    visit.ask("first")
    assert "no image we know" in page.get_by_role("alert").first.inner_text()
    assert page.get_by_label("Question", exact=True).input_value() == "first", "to ask again"
    page.get_by_role("button", name="Remove broken.png").click()
    visit.ask("second")
    assert all(each.startswith("word0") for each in visit.answers())
    assert page.get_by_label("Question", exact=True).input_value() == ""
    assert page.locator("#attached li").count() == 0
    visit.ask("third")
    assert all(each.startswith("word0") for each in visit.answers())


def test_nothing_is_asked_before_the_server_has_named_its_model(
    visit: Visit, fake_site: ServerProcess
) -> None:
    page, held = visit.page, []
    visit.origin = fake_site.url
    page.route("**/v1/models", lambda route: held.append(route))
    page.goto(fake_site.url)
    page.get_by_label("Question", exact=True).fill("early")
    page.keyboard.press("Enter")
    page.get_by_text("has not said yet which model").wait_for()
    assert page.locator(".turn").count() == 0
    held[0].continue_()
    page.get_by_text("ready", exact=True).wait_for()
    page.get_by_role("button", name="Ask").click()
    page.get_by_text("word0").first.wait_for()


def test_a_server_that_is_gone_is_told(visit: Visit, fake_site: ServerProcess) -> None:
    page = visit.open(fake_site.url)
    one_policy(visit, "full")
    page.route(ANSWERS, lambda route: route.abort())
    visit.ask("Are you there?")
    assert "cannot be reached" in page.get_by_role("alert").inner_text()


def test_an_answer_can_be_stopped(visit: Visit, fake_site: ServerProcess) -> None:
    page = visit.open(fake_site.url)
    page.get_by_label("Question", exact=True).fill("fake:slow please")
    page.keyboard.press("Enter")
    page.get_by_text("word2").nth(1).wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Ask").wait_for()
    assert page.locator(".problem").all_inner_texts() == ["Stopped.", "Stopped."]
    page.get_by_text("0 running, 0 waiting").wait_for()


@pytest.fixture(scope="module")
def site_with_key(browser: Browser) -> Iterator[ServerProcess]:
    """A server that wants a key, and does not tell positions."""
    flags = ("--model", "fake", "--threads", "1", "--api-keys", "open", "--no-positions")
    with serving_process(*flags) as server:
        yield server


def test_a_key_is_asked_for_and_kept_for_the_tab(
    visit: Visit, site_with_key: ServerProcess
) -> None:
    page = visit.open(site_with_key.url, "asks for an API key")
    key = page.get_by_label("API key", exact=True)
    key.fill("wrong")
    page.get_by_role("button", name="Use").click()
    page.get_by_text("asks for an API key", exact=True).wait_for()
    key.fill("open")
    page.keyboard.press("Enter")
    page.get_by_text("ready", exact=True).wait_for()
    visit.ask("hello")
    assert visit.answers()[0].startswith("word0")
    kept = "Object.values(localStorage).length + document.cookie.length"
    assert page.evaluate(kept) == 0
    assert page.evaluate("Object.values(sessionStorage)") == ["open"]
    page.reload()
    page.get_by_text("ready", exact=True).wait_for()


def test_docs_take_a_key_and_answer_a_request_with_images(
    visit: Visit, site_with_key: ServerProcess
) -> None:
    page = visit.page
    visit.origin = site_with_key.url
    page.goto(f"{site_with_key.url}/docs")
    page.get_by_role("button", name="Authorize").first.click()
    page.locator(".auth-container input").fill("open")
    page.locator(".auth-btn-wrapper button[type=submit]").click()
    page.locator(".auth-btn-wrapper .btn-done").click()
    page.locator("#operations-openai-chat_completions_v1_chat_completions_post").click()
    page.get_by_role("button", name="Execute").click()
    page.locator(".live-responses-table").get_by_text("word0 word1").first.wait_for()
    assert "image_url" in page.locator(".body-param__text").input_value()
    page.goto(f"{site_with_key.url}/redoc")
    page.get_by_role("heading", name="lookm-server").wait_for()
    # Redoc wants its maker's logo from elsewhere; the policy refuses.
    visit.complaints = [each for each in visit.complaints if "logo" not in each]


def test_later_turns_go_on_from_each_columns_own_answer(
    visit: Visit, fake_site: ServerProcess
) -> None:
    page = visit.open(fake_site.url)
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_label("Longest answer").fill("12")
    asked = answer_with(page, stream("yes"), stream("no"))
    visit.drop([("red.png", "image/png", RED)], PASTE)
    visit.ask("first")
    visit.ask("second")
    assert [each["model"] for each in asked[:2]] == ["fake:full", "fake:look-m-plus@0.2"]
    assert {each["temperature"] for each in asked} == {0.5}
    assert {each["max_tokens"] for each in asked} == {12}
    said = [[m["content"] for m in each["messages"] if m["role"] == "assistant"] for each in asked]
    assert said == [[], [], ["yes"], ["no"]]
    system, question, *_ = asked[2]["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    assert [part["type"] for part in question["content"]] == ["image_url", "text"]
    page.get_by_role("button", name="New chat").click()
    visit.ask("third")
    assert len(asked[4]["messages"]) == 2


def test_a_server_that_does_not_tell_positions_answers_all_the_same(
    visit: Visit, site_with_key: ServerProcess
) -> None:
    page = visit.open(site_with_key.url, "asks for an API key")
    page.get_by_label("API key", exact=True).fill("open")
    page.keyboard.press("Enter")
    page.get_by_text("ready", exact=True).wait_for()
    visit.ask("hello")
    assert all(each.startswith("word0") for each in visit.answers())
    assert page.locator(".picture").count() == 0
    assert "does not say which tokens" in page.locator("#notice").inner_text()


def test_by_keyboard_alone(visit: Visit, fake_site: ServerProcess) -> None:
    page = visit.open(fake_site.url)
    answer_with(page, stream("a star", positions=small_positions()))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the question"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "question"
    visit.drop([("blue.png", "image/png", BLUE)], PASTE)
    page.keyboard.type("What is it?")
    page.keyboard.press("Enter")
    page.locator(".picture").wait_for()
    for _ in range(60):
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.tagName") == "CANVAS":
            break
    page.keyboard.press("ArrowRight")
    tip = page.locator("#tip")
    assert (
        "Image 1, seen in tiles, tile 1, row 1, column 1 (token 6): kept in 0 of 6"
        in tip.inner_text()
    )
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert "tile 2, row 1, column 1 (token 11)" in tip.inner_text(), "over the edge of a tile"
    page.keyboard.press("ArrowDown")
    assert "tile 2, row 2, column 1 (token 13)" in tip.inner_text()
    page.keyboard.press("ArrowDown")
    assert "token 13" in tip.inner_text(), "at the edge it stays"
    page.keyboard.press("Shift+Tab")
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    assert "merged in 6" in tip.inner_text()
    page.keyboard.press("Escape")
    assert not tip.is_visible()


def test_shades_tell_kept_merged_and_dropped_apart(visit: Visit, fake_site: ServerProcess) -> None:
    page = visit.open(fake_site.url)
    one_policy(visit, "look-m@0.2")
    answer_with(page, stream("a star", positions=small_positions()))
    visit.drop([("blue.png", "image/png", BLUE)])
    visit.ask("What is it?")
    shown = """(canvas) => {
      const {width, height} = canvas, context = canvas.getContext("2d");
      const box = (column, row) => [...context.getImageData(
        (column * width) / 2 + 5, (row * height) / 2 + 5, width / 2 - 10, height / 2 - 10).data];
      const colour = (data) => (_, at) => at % 4 ? [] : data.slice(at, at + 3).join();
      const colours = (data) => new Set(data.flatMap(colour(data)));
      return [[0, 0], [1, 0], [0, 1]].map(([c, r]) => [...colours(box(c, r))]);
    }"""
    layer = page.get_by_label("Layer")
    part, merged, dropped = page.locator("canvas").first.evaluate(shown)
    assert len(part) == 1
    assert len(merged) > 2, "stripes"
    assert len(dropped) == 1
    assert part != dropped
    layer.fill("2")
    page.get_by_label("KV head").select_option("1")
    assert page.locator("canvas").first.evaluate(shown)[0] == ["0,0,255"], (
        "kept: the image as it is"
    )
    page.get_by_label("KV head").select_option("2")
    assert page.locator("canvas").first.evaluate(shown)[0] == dropped


def test_the_slider_changes_pictures_that_are_not_on_the_screen_too(
    visit: Visit, fake_site: ServerProcess
) -> None:
    page = visit.open(fake_site.url)
    one_policy(visit, "look-m@0.2")
    positions = small_positions()
    positions["images"] *= 24
    answer_with(page, stream("a star", positions=positions))
    visit.drop([(f"{n}.png", "image/png", BLUE) for n in range(24)])
    visit.ask("What are they?")
    pixel = "canvas => [...canvas.getContext('2d').getImageData(9, 9, 1, 1).data].join()"
    last = page.locator("canvas").nth(46)
    before = last.evaluate(pixel)
    page.get_by_label("KV head").select_option("1")
    page.get_by_label("Layer").fill("2")
    assert page.locator("canvas").first.evaluate(pixel) == "0,0,255,255", "kept"
    assert before != "0,0,255,255"
    last.evaluate(f"""async canvas => {{
      while (({pixel})(canvas) !== "0,0,255,255") await new Promise(done => setTimeout(done, 20));
    }}""")


def test_a_picture_from_the_camera(visit: Visit, fake_site: ServerProcess) -> None:
    page = visit.open(fake_site.url)
    page.get_by_role("button", name="Camera").click()
    page.locator("#viewfinder").evaluate(
        "video => video.videoWidth || new Promise(seen => (video.onloadedmetadata = () => seen()))"
    )
    page.get_by_role("button", name="Take the picture").click()
    page.get_by_role("button", name="Remove camera.jpg").wait_for()
    visit.ask("What is it?")
    assert visit.answers()[0].startswith("word0")


@pytest.mark.parametrize("width", [320, 400, 1280])
def test_nothing_is_cut_off_at_any_width(
    browser: Browser, fake_site: ServerProcess, width: int
) -> None:
    with Visit.on(browser, width, 800) as visit:
        page = visit.open(fake_site.url)
        answer_with(page, stream("a star " * 40, positions=small_positions()))
        if width < 800:
            assert not page.get_by_label("System prompt").is_visible()
            page.get_by_text("Policies and settings").click()
        page.get_by_role("button", name="Add a policy").click()
        visit.drop([(f"{'long' * 40}.png", "image/png", BLUE)])
        visit.ask("What is it? " * 20)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        send = page.get_by_role("button", name="Ask").bounding_box()
        assert send["x"] + send["width"] <= width
        across = {box["x"] for box in (a.bounding_box() for a in page.locator(".answer").all())}
        assert len(across) == (3 if width == 1280 else 1)
        assert visit.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_axe_finds_nothing(
    browser: Browser, site_with_key: ServerProcess, scheme: str, width: int
) -> None:
    """Its script is in the package axe-playwright-python; it is run past the page's policy."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    with Visit.on(browser, width, 860, color_scheme=scheme) as visit:
        page = visit.open(site_with_key.url, "asks for an API key")
        answer_with(
            page,
            stream("a star", positions=small_positions()),
            failing_stream("so far", message="The worker died."),
        )
        page.locator("#panel").evaluate("panel => (panel.open = true)")
        for when in ("at first", "with an answer"):
            found = axe.run(page).response["violations"]
            shown = [(v["id"], [n["html"] for n in v["nodes"]]) for v in found]
            assert shown == [], when
            visit.drop([("blue.png", "image/png", BLUE)])
            visit.ask("What is it?")
            visit.drop([("red.png", "image/png", RED)])
