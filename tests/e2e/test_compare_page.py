# SPDX-License-Identifier: GPL-2.0-only
"""The report of compare in a real browser: nothing to complain about, all charts drawn, readable, no network."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kmemwatch.compare.comparison import Comparison
from kmemwatch.compare.html import charts, to_html
from tests.needs import BROWSER, require
from tests.unit.test_compare_output import NOW_NS, ODD

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WIDTHS = (1280, 400)
LEAST_CONTRAST = 4.5
"""What WCAG asks of text of usual size."""
SMALLEST_PX = 12
INK = """canvas => {
    const {width, height} = canvas;
    const pixels = canvas.getContext("2d").getImageData(0, 0, width, height).data;
    const colors = new Map();
    for (let at = 0; at < pixels.length; at += 4) {
        if (pixels[at + 3] > 200) {
            const color = pixels.slice(at, at + 3).join();
            colors.set(color, (colors.get(color) || 0) + 1);
        }
    }
    return [...colors];
}"""
"""Colours of a canvas with the number of their pixels."""
TEXTS = """() => {
    const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
    const light = ([r, g, b]) => {
        const part = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
        return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
    };
    const below = node => {
        for (; node; node = node.parentElement) {
            const color = parse(getComputedStyle(node).backgroundColor);
            if (color.length === 3 || color[3] > 0) return color;
        }
        return [255, 255, 255];
    };
    const found = [];
    for (const node of document.querySelectorAll("main *")) {
        const own = [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim());
        if (!own || !node.offsetParent) continue;
        const style = getComputedStyle(node);
        const [a, b] = [light(parse(style.color)), light(below(node))].sort((x, y) => y - x);
        found.push([node.textContent.trim().slice(0, 40), parseFloat(style.fontSize), (a + 0.05) / (b + 0.05)]);
    }
    return found;
}"""
"""(text, size in pixels, contrast) of what can be read."""
WIDE = """all => all.filter(one => one.getBoundingClientRect().right > innerWidth
    && !one.closest(".scroll, details:not([open])")).map(one => one.outerHTML)"""
UNKNOWN = "\N{EN DASH}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    require("a browser")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        root = ["--no-sandbox"] if os.geteuid() == 0 else []
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=root)
        yield chromium
        chromium.close()


Open = Callable[..., AbstractContextManager["Page"]]


@pytest.fixture
def open_page(browser: Browser, tmp_path: Path) -> Open:
    """Opens the report of a comparison; fails for whatever the browser complains about, and for any request."""

    @contextmanager
    def opened(found: Comparison, **context: Any) -> Iterator[Page]:
        path = tmp_path / "report.html"
        path.write_text(to_html(found, NOW_NS), "utf-8")
        complaints: list[str] = []
        page = browser.new_context(**context).new_page()
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("request", lambda request: complaints.append(f"asked for {request.url}"))
        page.goto(path.as_uri())
        yield page
        page.context.close()
        assert [c for c in complaints if c not in (f"asked for {path.as_uri()}", "asked for data:,")] == []

    return opened


def ink(page: Page) -> list[dict[str, int]]:
    """Colours of each chart."""
    return [dict(canvas.evaluate(INK)) for canvas in page.query_selector_all(".chart canvas")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_all_charts_are_drawn_and_the_page_can_be_read(open_page: Open, width: int, scheme: str) -> None:
    comparison = ODD["example"]()
    wanted = charts(comparison)
    with open_page(comparison, viewport={"width": width, "height": 900}, color_scheme=scheme) as page:
        drawn = page.eval_on_selector_all(".chart [data-drawn]", "all => all.map(one => Number(one.dataset.drawn))")
        assert drawn == [len(chart["lines"]) for chart in wanted]
        # Axes, and each side in its colour: a line across the chart is more than a hundred pixels.
        lines = page.evaluate(
            "['a', 'b'].map(n => getComputedStyle(document.documentElement).getPropertyValue('--' + n).trim())"
        )
        colors = [",".join(str(int(one[at : at + 2], 16)) for at in (1, 3, 5)) for one in lines]
        for chart, found in zip(wanted, ink(page), strict=True):
            sides = {line["side"] for line in chart["lines"]}
            assert all(found.get(colors["AB".index(side)], 0) > 100 for side in sides), (chart["key"], found)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        texts = page.evaluate(TEXTS)
        assert len(texts) > 150
        assert [text for text in texts if text[1] < SMALLEST_PX or text[2] < LEAST_CONTRAST] == []
        # What is too wide scrolls by itself; nothing but tables may.
        wide = page.eval_on_selector_all("main *", WIDE)
        assert wide == []


def test_a_pointer_shows_the_values_of_both_sides(open_page: Open) -> None:
    with open_page(ODD["example"](), viewport={"width": 1280, "height": 900}) as page:
        legend = page.locator("#chart-dying .u-value")
        before = legend.all_inner_texts()
        over = page.locator("#chart-dying .u-over")
        over.scroll_into_view_if_needed()
        box = over.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + box["height"] / 2)
        shown = legend.all_inner_texts()
        assert set(before) == {UNKNOWN}
        assert len(shown) == 3
        # Three quarters of 199 s: two die each second on side A, two are dying on side B.
        assert float(shown[1]) == pytest.approx(2 * 0.75 * 199, abs=6)
        assert shown[2] == "2"


def test_the_curve_of_delays_shows_its_interval(open_page: Open) -> None:
    with open_page(ODD["example"](), viewport={"width": 400, "height": 900}) as page:
        over = page.locator("#chart-delays .u-over")
        over.scroll_into_view_if_needed()
        box = over.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] / 2)
        shown = [one.inner_text() for one in page.locator("#chart-delays .u-value").all() if one.is_visible()]
        assert len(shown) == 3
        assert re.fullmatch(r"[\d.]+ % \([\d.]+ % to [\d.]+ %\)", shown[1])


def test_charts_follow_the_scheme_and_the_width(open_page: Open) -> None:
    with open_page(ODD["example"](), viewport={"width": 1280, "height": 900}, color_scheme="light") as page:
        light, wide = ink(page), page.locator(".chart canvas").first.bounding_box()
        page.emulate_media(color_scheme="dark")
        page.wait_for_timeout(200)
        assert all(one.keys() != other.keys() for one, other in zip(light, ink(page), strict=True))
        page.set_viewport_size({"width": 400, "height": 900})
        page.wait_for_timeout(200)
        narrow = page.locator(".chart canvas").first.bounding_box()
        assert wide is not None
        assert narrow is not None
        assert narrow["width"] < 400 < wide["width"]
        assert page.evaluate("document.documentElement.scrollWidth") <= 400


@pytest.mark.parametrize("name", [name for name in ODD if name != "example"])
def test_odd_sides_are_no_trouble(open_page: Open, name: str) -> None:
    comparison = ODD[name]()
    with open_page(comparison, viewport={"width": 400, "height": 900}) as page:
        assert page.locator(".chart [data-drawn]").count() == len(charts(comparison))
        assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_without_javascript_the_figures_are_there(open_page: Open) -> None:
    with open_page(ODD["example"](), java_script_enabled=False) as page:
        assert page.locator("#table tr").count() == 12
        assert page.get_by_text("The charts need JavaScript").is_visible()
