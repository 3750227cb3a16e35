"""A headless Chromium of this machine, and pages that are watched while a test walks over them."""

from collections.abc import Iterator

import pytest

from tests.browser.chromium import Browser, Visit, chromium_or_reason, opened
from tests.lookm.models import hub_shape
from tests.server.process import ServerProcess, serving_process


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """One for all tests here; it ends with them, since it brings an event loop of its own."""
    reason = chromium_or_reason()[1]
    if reason:
        pytest.skip(reason)
    with opened() as browser:
        yield browser


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """A page that loads nothing from elsewhere and whose console stays empty."""
    with Visit.on(browser) as visit:
        yield visit
    assert visit.complaints == []


@pytest.fixture(scope="package")
def fake_site(browser: Browser) -> Iterator[ServerProcess]:
    """The page of a server without a model."""
    flags = ("--model", "fake:step_s=0.002", "--threads", "1")
    with serving_process(*flags) as server:
        yield server


@pytest.fixture(scope="package")
def demo_site(browser: Browser) -> Iterator[ServerProcess]:
    """The page of a server with the demo model."""
    with serving_process("--kv-cache-memory", "256MiB") as server:
        yield server


@pytest.fixture(scope="package")
def site(
    browser: Browser, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """The page of a server with the demo model, or with a tiny random model of a family."""
    if request.param == "demo":
        yield request.getfixturevalue("demo_site")
        return
    folder = hub_shape.write(tmp_path_factory.mktemp(request.param), request.param)
    with serving_process("--model", str(folder), "--kv-cache-memory", "64MiB") as server:
        yield server
