"""Built pages opened in the system's Chromium, offline; a pytest plugin."""

from __future__ import annotations

import importlib.util
import pathlib
import re
import shutil

import pytest

PAGES = pathlib.Path(__file__).resolve().parents[1] / "_build" / "html"


@pytest.fixture(scope="module")
def browser():
    if not (PAGES / "index.html").is_file():
        pytest.skip("the book is not built here: run `make book` first")
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("no playwright: use `make browser-test`")
    if shutil.which("chromium") is None:
        pytest.skip("the system has no chromium")
    from playwright.sync_api import sync_playwright

    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=options, timeout=1_200_000)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """Function that opens a page; afterwards no page may have said or fetched anything that it should not."""
    noise, tabs = [], []

    def open_page(
        page: pathlib.Path, width: int = 1400, scheme: str = "light", query: str = "", before: str | None = None
    ):
        """before: JavaScript that runs ahead of the page's own."""
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        tabs.append(tab)
        if before:
            tab.add_init_script(before)
        tab.on("pageerror", lambda error: noise.append(f"{page.name}: {error}"))
        tab.on(
            "console",
            lambda m: noise.append(f"{page.name}: {m.text}") if m.type in ("error", "warning") else None,
        )
        tab.on("requestfailed", lambda request: noise.append(f"{page.name}: failed {request.url[:100]}"))
        tab.on("request", lambda r: None if re.match("file:|data:|blob:", r.url) else noise.append(r.url[:100]))
        tab.set_default_timeout(1_200_000)
        tab.goto(page.as_uri() + query)  # until it is loaded, pictures and all
        tab.wait_for_timeout(200)  # for what scripts may ask for afterwards
        return tab

    yield open_page
    for tab in tabs:
        tab.close()
    assert not noise
