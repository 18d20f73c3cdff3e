"""`hftitan report` in Chromium, for a work folder with every part of a page. tests/local checks that of a real run."""

import asyncio
import json

import browser
import pytest
from report_page import good, look


@pytest.fixture
def crowded(tmp_path):
    """A work folder with long words everywhere, restarts, many checkpoints and a failure."""
    long = "a-word-without-any-place-to-break-it/" * 6
    when = "2027-01-15T08:00:00Z"
    lines = [
        {"kind": "step", "step": n, "steps": 99_999, "attempt": 1 + n // 40, "time": 1.8e9 + n, "loss": 1e6 / n,
         "gradNorm": 1.5e-9 * n, "lr": 1e-7 * n, "tokensPerSecond": 1_234_567.8, "mfu": 0.4, "stepSeconds": 0.00012,
         "memoryPeakBytes": 84_000_000_000 + n}
        for n in range(1, 100)
    ]  # fmt: skip
    lines += [{"kind": "checkpoint", "step": n, "attempt": 1, "time": 1.8e9, "seconds": 0.5} for n in range(1, 99, 3)]
    lines += [{"kind": "validation", "step": n, "attempt": 1, "time": 1.8e9, "loss": 9e5 / n} for n in (20, 60, 99)]
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


def test_long_words_and_large_numbers(crowded):
    for (width, scheme), shown in look(crowded).items():
        good(shown, width, scheme)
        assert shown["curves"] == [2, 1, 1, 1, 1, 1, 1], "the first figure shows training and validation"


def test_requests_errors_and_overflow_of_a_page_are_detected(tmp_path):
    """Without this, the checks above might never fail."""
    (tmp_path / "page.html").write_text(
        '<body style="margin:0;width:3000px"><img src="none.png"><script>console.log("a"); throw Error("b")</script>'
    )

    async def shown():
        async with browser.page(browser.program()) as tab:
            await tab.show(500)
            await tab.open((tmp_path / "page.html").as_uri())
            return await tab.value("document.documentElement.scrollWidth"), tab.console_messages, tab.requests

    width, console_messages, requests = asyncio.run(shown())
    assert width == 3000
    assert any("'a'" in message for message in console_messages)
    assert any("Error: b" in message for message in console_messages)
    assert requests[-1].endswith("none.png")
