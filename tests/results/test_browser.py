"""The page as a browser shows it: Chromium, where there is one.

It takes playwright's own (``playwright install chromium``) or one of the system
(``apt-get install chromium``), and ``pip install playwright``.
"""

import shutil

import pytest
from full_output import HOSTILE, write_full

from proxyfda.results import main

SYSTEM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SCHEMES, WIDTHS = ("light", "dark"), (360, 1600)
# What is wider than the window although it does not scroll within itself.
_TOO_WIDE = """() => [...document.querySelectorAll("body *")].filter(one =>
    one.getBoundingClientRect().right > innerWidth + 1
    && !one.closest(".wide, figure")).map(one => one.outerHTML.slice(0, 80))"""
_BROKEN_IMAGES = """() => Promise.all([...document.images].map(
    one => one.decode().then(() => one.naturalWidth > 0 ? "" : one.alt, () => one.alt)))"""
# The lowest contrast of any text on the ground that it stands on, as WCAG 2.1 defines it.
_CONTRAST = """() => {
    const parts = colour => colour.match(/[\\d.]+/g).map(Number);
    const light = colour => parts(colour).slice(0, 3).map(value => value / 255).map(value =>
        value <= .03928 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4
    ).reduce((sum, value, at) => sum + value * [.2126, .7152, .0722][at], 0);
    const ground = one => {
        for (; one; one = one.parentElement) {
            const colour = getComputedStyle(one).backgroundColor;
            if (parts(colour)[3] !== 0) return colour;
        }
        return "rgb(255, 255, 255)";
    };
    const found = [...document.querySelectorAll("body *")].filter(one =>
        [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim())
    ).map(one => {
        const [a, b] = [light(getComputedStyle(one).color), light(ground(one))];
        return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), one.outerHTML.slice(0, 80)];
    });
    return found.sort((a, b) => a[0] - b[0])[0];
}"""


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    system = next(filter(None, map(shutil.which, SYSTEM)), None)
    with playwright.sync_playwright() as started:
        try:
            found = started.chromium.launch(executable_path=system, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium can be started: {str(error).splitlines()[0]}")
        yield found
        found.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    html = folder / "page.html"
    assert main([str(write_full(folder / "output")), "--html", str(html)]) == 0
    return html


@pytest.fixture(
    params=[(s, w) for s in SCHEMES for w in WIDTHS], ids=lambda way: f"{way[0]}-{way[1]}"
)
def shown(request, browser, path):
    """The page in one of four ways, with all that is folded open; and what it asked for."""
    scheme, width = request.param
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    yield page, scheme, width, asked
    page.close()


def test_it_looks_right(shown, path):
    page, scheme, width, asked = shown
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "it scrolls sideways"
    assert page.evaluate(_TOO_WIDE) == []
    assert {one for one in asked if not one.startswith("data:")} == {path.as_uri()}
    images = page.evaluate(_BROKEN_IMAGES)
    assert len(images) > 8 and not any(images)
    contrast, worst = page.evaluate(_CONTRAST)
    assert contrast >= 4.5, worst
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(20, 24, 29)") == (scheme == "dark"), ground


def test_a_wide_table_scrolls_within_itself(browser, path):
    page = browser.new_page(viewport={"width": 360, "height": 800})
    page.goto(path.as_uri())
    moved = page.evaluate(
        """() => [...document.querySelectorAll(".wide")].filter(one => one.offsetParent)
            .map(one => { one.scrollLeft = 9999; return one.scrollLeft })"""
    )
    assert max(moved) > 100
    page.close()


def test_contents_lead_to_sections(browser, path):
    page = browser.new_page(viewport={"width": 1600, "height": 800})
    page.goto(path.as_uri())
    links = page.locator("nav a")
    assert links.count() > 8
    links.get_by_text("Diagnostics", exact=True).click()
    top = page.locator("h2", has_text="Diagnostics").bounding_box()["y"]
    assert 0 <= top < 100
    assert page.evaluate("getComputedStyle(document.querySelector('nav')).position") == "sticky"
    page.close()


def test_names_are_shown_as_they_are(browser, path):
    page = browser.new_page()
    page.goto(path.as_uri())
    assert page.get_by_text(HOSTILE, exact=True).count() > 0
    assert page.evaluate("document.querySelectorAll('[onclick], i, main b').length") == 0
    page.close()
