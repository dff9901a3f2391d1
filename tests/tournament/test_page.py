from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from luthier.tournament.board import Board
from luthier.tournament.page import render

Make = Callable[..., Board]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


class Page(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_it_says_everything_that_the_board_holds(make_board: Make) -> None:
    board = make_board()
    html = render(board)
    page = Page(html)
    for s in board.standings:
        assert s.name in page.text
        assert s.model in page.text
    for fact in (
        board.task["digest"],
        board.task["splits_digest"],
        board.run,
        "A note.",
        "A CPU",
        "torch 2.13",
        "ab" * 32,
    ):
        assert fact in page.text
    assert board.verdict["rule"] in page.text
    assert "luthier tournament 'my task.yaml' train.epochs=1" in page.text
    assert "failed: connection refused" in page.text
    assert sum(tag == "svg" for tag, _ in page.tags) == 3 + len(board.finished)
    assert sum(a.get("class", "").startswith("entrant") for t, a in page.tags if t == "g") == 3 * len(board.finished)  # type: ignore[union-attr]


def test_nothing_from_the_user_becomes_markup(make_board: Make) -> None:
    html = render(make_board())
    page = Page(html)
    assert not [tag for tag, _ in page.tags if tag in ("script", "img", "iframe", "object")]
    assert not [a for _, a in page.tags for key in a if key.startswith("on")]
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_it_fetches_nothing(make_board: Make) -> None:
    html = render(make_board())
    page = Page(html)
    for _, attributes in page.tags:
        for key in ("src", "href", "srcset", "data", "action"):
            assert (attributes.get(key) or "data:").startswith("data:")
    assert "@import" not in html
    assert not re.search(r"url\(", html)
    policy = next(a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_equal_boards_give_equal_pages(make_board: Make, tmp_path: Path) -> None:
    board = make_board()
    board.save(tmp_path)
    assert render(Board.load(tmp_path)) == render(board)


def test_boards_with_little_on_them(make_board: Make) -> None:
    assert (
        "Only zero-shot"
        in Page(render(make_board(rows=(("zero-shot", "zero_shot", "m", 0.5, None, None, 0, None, 0.0, None),)))).text
    )
    nobody = make_board(rows=())
    assert "No entrant finished" in Page(render(nobody)).text


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM or not DRIVER:
        pytest.skip("no chromium with chromedriver on this machine (apt-get install chromium chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1280,1600",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.mark.browser
def test_a_browser_draws_it_without_errors_or_requests(browser: Any, make_board: Make, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By

    board = make_board()
    board.save(tmp_path)
    browser.get_log("performance")
    browser.get((tmp_path / "board.html").as_uri())
    assert browser.title == "support: tournament", "no script of the data ran"
    plots = browser.find_elements(By.CSS_SELECTOR, ".plots svg")
    assert len(plots) == 3
    for svg in plots:
        dots = svg.find_elements(By.CSS_SELECTOR, "circle.at")
        assert len(dots) == len(board.finished)
        frame = svg.rect
        for dot in dots:
            assert dot.rect["width"] > 4, "drawn"
            assert frame["x"] <= dot.rect["x"] <= frame["x"] + frame["width"]
            assert frame["y"] <= dot.rect["y"] <= frame["y"] + frame["height"]
        assert dots[0].value_of_css_property("fill") == "rgb(47, 102, 196)"
    assert len(browser.find_elements(By.CSS_SELECTOR, ".heat td")) == 3 * len(board.finished)
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {e["params"]["request"]["url"].split(":")[0] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert asked <= {"file", "data"}


@pytest.mark.browser
def test_it_reads_on_a_phone_and_in_the_dark(browser: Any, make_board: Make, tmp_path: Path) -> None:
    make_board().save(tmp_path)
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    )
    try:
        browser.get((tmp_path / "board.html").as_uri())
        width = browser.execute_script("return document.documentElement.scrollWidth")
        assert width <= 390, "no sideways scrolling of the page"
        light = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
        )
        dark = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (light, dark) == ("rgb(247, 246, 243)", "rgb(21, 23, 27)")
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
