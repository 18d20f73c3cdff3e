"""`hftitan report` in a real Chromium: of a run of the real trainer, and of a folder with all that a page can hold."""

import asyncio
import json
import os
import subprocess
import sys

import browser
import pytest
import yaml
from tiny import make_model, make_text

STEPS = 30
WIDTHS = (1280, 700, 340)
CHECK = """
(() => {
  const seen = (e) => { const r = e.getBoundingClientRect(); return r.width + r.height > 0; };
  const inside = (inner, outer) => inner.left >= outer.left - 1 && inner.right <= outer.right + 1;
  const figures = [...document.querySelectorAll("figure")];
  const rgb = (color) => color.match(/[\\d.]+/g).slice(0, 3).map(Number);
  return {
    titles: figures.map((f) => f.querySelector("figcaption").firstChild.textContent),
    sizes: figures.map((f) => f.querySelector("svg").getBoundingClientRect()).map((r) => [r.width, r.height]),
    curves: figures.map((f) => [...f.querySelectorAll("polyline, circle")].filter(seen).length),
    labels: figures.map((f) => [...f.querySelectorAll("text")]
      .filter((t) => !inside(t.getBoundingClientRect(), f.getBoundingClientRect())).map((t) => t.textContent)).flat(),
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


@pytest.fixture(scope="module")
def chromium():
    return browser.program()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The work folder of a real run, with a validation and two checkpoints."""
    folder = tmp_path_factory.mktemp("trained")
    make_model(folder / "model")
    make_text(folder / "text.jsonl")
    data = {"path": str(folder / "text.jsonl")}
    spec = {
        "model": {"name": str(folder / "model")},
        "dataset": data,
        "mesh": {"device": "cpu"},
        "training": {"steps": STEPS, "seqLen": 64},
        "checkpoint": {"interval": 15},
        "validation": {"dataset": data, "interval": 10, "steps": 1},
    }
    job = {"apiVersion": "hftitan.io/v1alpha1", "kind": "HFTitanJob", "metadata": {"name": "tiny"}, "spec": spec}
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    command = [sys.executable, "-m", "hftitan_operator.cli", "run", "job.yaml", "--workdir", "run"]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environ, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run"


@pytest.fixture
def crowded(tmp_path):
    """Long words in every place, restarts, many checkpoints, a failure."""
    long = "a-word-without-any-place-to-break-it/" * 6
    when = "2027-01-15T08:00:00Z"
    lines = [
        {"kind": "step", "step": n, "steps": 99_999, "attempt": 1 + n // 40, "time": 1.8e9 + n, "loss": 1e6 / n,
         "gradNorm": 1.5e-9 * n, "lr": 1e-7 * n, "tokensPerSecond": 1_234_567.8, "mfu": 0.4, "stepSeconds": 0.00012,
         "memoryPeakBytes": 84_000_000_000 + n}
        for n in range(1, 100)
    ]  # fmt: skip
    lines += [{"kind": "checkpoint", "step": n, "attempt": 1, "time": 1.8e9, "seconds": 0.5} for n in range(1, 99, 3)]
    status = {
        "phase": "Failed", "message": long, "mesh": "128x8: rep16 dp8 tp8", "exportPath": long, "restarts": 2,
        "restartHistory": [{"attempt": n, "reason": "RendezvousTimedOut", "step": 40, "time": when} for n in (1, 2)],
        "conditions": [{"type": "PodsCreated", "status": "Unknown", "reason": "ATooLongReason", "message": long}],
    }  # fmt: skip
    (tmp_path / ".config/x").mkdir(parents=True)
    config = {"jobName": "x" * 63, "model": {"name": long}, "dataset": {"path": long}}
    (tmp_path / ".config/x/trainer.json").write_text(json.dumps(config))
    (tmp_path / "status.json").write_text(json.dumps({"status": status}))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def look(chromium, folder):
    """What each width and colour scheme shows: (width, scheme) -> the result of CHECK."""
    page = folder / "report.html"
    subprocess.run([sys.executable, "-m", "hftitan_operator.cli", "report", str(folder)], check=True, timeout=60)

    async def shown():
        found = {}
        async with browser.page(chromium) as tab:
            await tab.open(page.as_uri())
            for scheme in ("light", "dark"):
                for width in WIDTHS:
                    await tab.show(width, scheme=scheme)
                    found[width, scheme] = await tab.value(CHECK)
            return found, tab.complaints, tab.requests

    found, complaints, requests = asyncio.run(shown())
    assert complaints == []
    assert requests == [page.as_uri()], "the page fetches something"
    return found


def contrast(one, other):
    """WCAG's ratio of two colours, 1 to 21."""

    def light(color):
        parts = [c / 255 for c in color]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


def good(shown, width, scheme):
    assert shown["sideways"] <= 0, f"{width} pixels scroll sideways"
    assert shown["wide"] == []
    assert shown["labels"] == [], "labels of an axis lie outside their figure"
    assert shown["letters"] >= 8, "letters of an axis cannot be read"
    assert all(w > 250 and h > 100 for w, h in shown["sizes"])
    assert (sum(shown["background"]) < 200) == (scheme == "dark")
    for words in shown["ink"]:
        assert contrast(words["color"], words["on"]) >= 4.5, words


def test_a_real_run(chromium, trained):
    for (width, scheme), shown in look(chromium, trained).items():
        good(shown, width, scheme)
        expected = ["Loss", "Gradient norm", "Learning rate", "Tokens per second", "Seconds of a step"]
        assert shown["titles"] == [*expected, "Peak memory, bytes"]
        assert shown["curves"] == [2, 1, 1, 1, 1, 1], "training and validation in the first"


def test_long_words_and_big_numbers(chromium, crowded):
    for (width, scheme), shown in look(chromium, crowded).items():
        good(shown, width, scheme)
        assert len(shown["titles"]) == 7


def test_what_a_page_asks_for_and_says_is_noticed(chromium, tmp_path):
    """The checks above could not fail otherwise."""
    (tmp_path / "page.html").write_text(
        '<body style="margin:0;width:3000px"><img src="none.png"><script>console.log("a"); throw Error("b")</script>'
    )

    async def shown():
        async with browser.page(chromium) as tab:
            await tab.show(500)
            await tab.open((tmp_path / "page.html").as_uri())
            return await tab.value("document.documentElement.scrollWidth"), tab.complaints, tab.requests

    width, complaints, requests = asyncio.run(shown())
    assert width == 3000
    assert any("'a'" in said for said in complaints)
    assert any("Error: b" in said for said in complaints)
    assert requests[-1].endswith("none.png")
