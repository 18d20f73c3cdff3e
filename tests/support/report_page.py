"""Opens a page of `hftitan report` in Chromium and checks it at several widths and in both color schemes."""

import asyncio
import subprocess
import sys

import browser

WIDTHS = (1280, 700, 340)
CHECK = """
(() => {
  const seen = (e) => { const r = e.getBoundingClientRect(); return r.width + r.height > 0; };
  const inside = (inner, outer) => inner.left >= outer.left - 1 && inner.right <= outer.right + 1;
  const figures = [...document.querySelectorAll("figure")];
  const apart = (a, b) => a.right <= b.left || b.right <= a.left || a.bottom <= b.top || b.bottom <= a.top;
  const box = (e) => e.getBoundingClientRect();
  const rgb = (color) => color.match(/[\\d.]+/g).slice(0, 3).map(Number);
  return {
    titles: figures.map((f) => f.querySelector("figcaption").firstChild.textContent),
    sizes: figures.map((f) => f.querySelector("svg").getBoundingClientRect()).map((r) => [r.width, r.height]),
    curves: figures.map((f) => [...f.querySelectorAll("polyline, circle")].filter(seen).length),
    marks: figures.map((f) => f.querySelectorAll("line.attempt, line.checkpoint").length),
    labels: figures.map((f) => [...f.querySelectorAll("text")]
      .filter((t) => !inside(t.getBoundingClientRect(), f.getBoundingClientRect())).map((t) => t.textContent)).flat(),
    axes: figures.map((f) => [...f.querySelectorAll("text.axis")].map((t) => t.textContent)),
    overlaps: figures.map((f) => [...f.querySelectorAll("text.axis")].flatMap((a) =>
      [...f.querySelectorAll("text")].filter((t) => t !== a && !apart(box(a), box(t)))
        .map((t) => `${a.textContent} ${t.textContent}`))).flat(),
    letters: Math.min(...figures.map((f) => f.querySelector("svg text").getBoundingClientRect().height)),
    sideways: document.documentElement.scrollWidth - innerWidth,
    wide: [...document.querySelectorAll("body *")].filter((e) => !e.closest("svg, .scroll, pre"))
      .filter((e) => e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 80)),
    background: rgb(getComputedStyle(document.body).backgroundColor),
    ink: [".phase", "h1", "p", "dt", "dd", "td", "figcaption b", "svg text"].map((s) => document.querySelector(s))
      .filter(Boolean).map((e) => { const style = getComputedStyle(e); return {
        what: e.tagName + "." + e.className.toString(), on: rgb(e.matches(".phase") ? style.backgroundColor :
          getComputedStyle(e.closest("figure, dl div, body")).backgroundColor),
        color: rgb(e.closest("svg") ? style.fill : style.color) }; }),
  };
})()
"""


def look(folder):
    """Make the page of a work folder and return the result of CHECK for each (width, color scheme)."""
    page = folder / "report.html"
    subprocess.run([sys.executable, "-m", "hftitan_operator.cli", "report", str(folder)], check=True, timeout=60)

    async def shown():
        found = {}
        async with browser.page(browser.program()) as tab:
            await tab.open(page.as_uri())
            for scheme in ("light", "dark"):
                for width in WIDTHS:
                    await tab.show(width, scheme=scheme)
                    found[width, scheme] = await tab.value(CHECK)
            return found, tab.console_messages, tab.requests

    found, console_messages, requests = asyncio.run(shown())
    assert console_messages == []
    assert requests == [page.as_uri()], "the page must not fetch anything"
    return found


def contrast(one, other):
    """Return the WCAG contrast ratio of two colors, 1 to 21."""

    def light(color):
        parts = [c / 255 for c in color]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


def good(shown, width, scheme):
    """Assert that everything fits and can be read."""
    assert shown["sideways"] <= 0, f"the page scrolls sideways at a width of {width} pixels"
    assert shown["wide"] == []
    assert shown["labels"] == [], "labels of an axis are outside their figure"
    assert all(len(titles) == 2 for titles in shown["axes"]), "each axis has a title"
    assert shown["overlaps"] == [], "the title of an axis overlaps its labels"
    assert shown["letters"] >= 8, "letters of an axis are too small to read"
    assert all(w > 250 and h > 100 for w, h in shown["sizes"])
    assert (sum(shown["background"]) < 200) == (scheme == "dark")
    for words in shown["ink"]:
        assert contrast(words["color"], words["on"]) >= 4.5, words
