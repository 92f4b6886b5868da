"""A scored dataset, a server of it on the loopback, and a browser where there is one."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import CHROMIUM, NOT_THERE
from egg import egg_job
from review_server import Server, open_page, serving

from datagen.generate import generate
from filters.config import ScoreConfig
from filters.score import score
from jobs.pool import PoolConfig
from manifests.dataset import Dataset

INLINE = PoolConfig(inline=True)


@pytest.fixture(scope="session")
def scored_eggs(tmp_path_factory) -> Path:
    """The folder of 9 eggs of 6 views with scores of meshes and images; tests take copies."""
    out = str(tmp_path_factory.mktemp("review") / "eggs")
    generate(egg_job(out, INLINE, identities=9))
    score(ScoreConfig(out, scorers=("mesh", "image"), pool=INLINE))
    return Path(out)


@pytest.fixture
def dataset(scored_eggs, tmp_path) -> Dataset:
    return Dataset(str(shutil.copytree(scored_eggs, tmp_path / "eggs")))


@pytest.fixture
def server(dataset) -> Iterator[Server]:
    with serving(dataset) as running:
        yield running


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium of the system; its event loop must not outlive a module, because others may run their own."""
    if CHROMIUM is None:
        pytest.skip(NOT_THERE)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        running = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()


@pytest.fixture
def page(browser, server):
    """The page of the server, ready; its errors and requests elsewhere fail the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(20_000)
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request", lambda request: request.url.startswith((server.url, "blob:", "data:")) or wrong.append(request.url)
    )
    open_page(page, server)
    yield page
    context.close()
    assert not wrong
