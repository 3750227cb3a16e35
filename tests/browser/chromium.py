"""The system's Chromium, driven by playwright, and what tests do on the page again and again."""

import base64
import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox",  # which containers do not have
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--disable-background-networking",
    "--disable-component-update",
)
PATIENCE_MS = 120_000  # for a busy machine
DROP = """async files => {
  const transfer = new DataTransfer();
  for (const {name, type, data} of files) {
    const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
    transfer.items.add(new File([bytes], name, {type}));
  }
  const options = {bubbles: true, cancelable: true};
  for (const kind of ["dragover", "drop"])
    document.body.dispatchEvent(new DragEvent(kind, {dataTransfer: transfer, ...options}));
  document.dispatchEvent(new ClipboardEvent("paste", {clipboardData: new DataTransfer()}));
}"""
PASTE = DROP.replace('["dragover", "drop"]', "[]").replace(
    "clipboardData: new DataTransfer()", "clipboardData: transfer, ...options"
)

Browser = Any  # playwright's, which is not there on every machine
Page = Any


def chromium_or_reason() -> tuple[str, str]:
    """Where Chromium is, or why there is none that could be driven."""
    path = next(filter(None, map(shutil.which, NAMES)), "")
    if not path:
        return "", f"there is no Chromium (looked for {', '.join(NAMES)})"
    if find_spec("playwright") is None:
        return "", "playwright is not installed"
    return path, ""


@contextlib.contextmanager
def opened() -> Iterator[Browser]:
    """Chromium, headless."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path, _ = chromium_or_reason()
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page in a window of its own; `complaints` collects what must not happen on it."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    origin: str = ""

    @classmethod
    @contextlib.contextmanager
    def on(
        cls, browser: Browser, width: int = 1280, height: int = 860, **options: Any
    ) -> Iterator[Self]:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        context.set_default_timeout(PATIENCE_MS)
        visit = cls(context.new_page())
        visit.page.on("console", visit._heard)
        visit.page.on("pageerror", lambda error: visit.complaints.append(str(error)))
        visit.page.on("request", visit._requested)
        yield visit
        context.close()

    def open(self, url: str, state: str = "ready") -> Page:
        """The page, once its server has said how it is."""
        self.origin = url
        self.page.goto(url)
        self.page.get_by_text(state, exact=True).wait_for()
        return self.page

    def drop(self, files: Sequence[tuple[str, str, bytes]], how: str = DROP) -> None:
        """Files, `(name, type, bytes)`, from the desktop."""
        before = self.page.locator("#attached li").count()
        sent = [
            {"name": name, "type": kind, "data": base64.b64encode(data).decode()}
            for name, kind, data in files
        ]
        self.page.evaluate(how, sent)
        images = sum(kind.startswith("image/") for _, kind, _ in files)
        if images:
            self.page.locator("#attached li").nth(before + images - 1).wait_for()

    def ask(self, question: str) -> None:
        """Ask, and wait until every column has ended."""
        self.page.get_by_label("Question", exact=True).fill(question)
        self.page.get_by_role("button", name="Ask").click()
        self.page.get_by_role("button", name="Ask").wait_for()

    def answers(self) -> list[str]:
        """What the columns of the last question say."""
        found: list[str] = self.page.locator(".turn").last.locator(".text").all_inner_texts()
        return found

    def _heard(self, message: Any) -> None:
        expected = message.text.startswith("Failed to load resource")  # a status that is tested
        if message.type == "error" and not expected:
            self.complaints.append(message.text)

    def _requested(self, request: Any) -> None:
        if not request.url.startswith((self.origin, "data:", "blob:")):
            self.complaints.append(f"a request to {request.url}")
