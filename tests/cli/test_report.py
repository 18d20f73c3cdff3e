"""`hftitan report`: the content of the page, that it loads nothing, and errors."""

import json
import re
from html.parser import HTMLParser

import pytest
from typer.testing import CliRunner

from hftitan_operator.cli import report as page
from hftitan_operator.cli.main import app
from hftitan_operator.cli.svg import chart, number, thinned, ticks
from hftitan_trainer.checkpoint import manifest


def line(kind, step, attempt=1, **values):
    return {"kind": kind, "step": step, "attempt": attempt, "time": 1_800_000_000.0 + step, **values}


def step(number, attempt, loss):
    return line("step", number, attempt, steps=20, loss=loss, gradNorm=1.5, lr=1e-3, tokensPerSecond=1000 + number)


RECORDS = [
    *(step(n, 1, 5 - n / 10) for n in range(1, 13)),
    line("checkpoint", 10, seconds=0.5),
    *(step(n, 2, 5 - n / 10) for n in range(11, 21)),
    line("validation", 20, 2, loss=2.75),
]
STATUS = {
    "phase": "Succeeded",
    "message": "finished 20 steps <b>&",
    "mesh": "1x2: dp2",
    "restarts": 1,
    "startTime": "2027-01-15T08:00:00Z",
    "completionTime": "2027-01-15T08:02:05Z",
    "restartHistory": [
        {"attempt": 1, "reason": "OOMKilled", "step": 12, "counted": True, "time": "2027-01-15T08:01:00Z"},
    ],
}


@pytest.fixture
def folder(tmp_path):
    """A work folder of `hftitan run`. A crash cut off the last line of metrics.jsonl."""
    run = tmp_path / "run"
    (run / ".config" / "tiny-config").mkdir(parents=True)
    config = {"jobName": "tiny", "model": {"name": "org/</pre><script>"}, "dataset": {"name": "org/data"}}
    (run / ".config" / "tiny-config" / "trainer.json").write_text(json.dumps(config))
    (run / "status.json").write_text(json.dumps({"uid": "u", "generation": 1, "status": STATUS}))
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in RECORDS) + '{"kind": "st')
    return run


class Reader(HTMLParser):
    """Collects the tags, checks that they are closed in order, and collects the attributes that fetch something."""

    VOID = ("meta", "line", "circle", "polyline", "rect")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.fetched = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.fetched += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def report(*words):
    return CliRunner().invoke(app, ["report", *map(str, words)])


def test_page_is_complete_and_fetches_nothing(folder):
    done = report(folder)
    assert done.stdout == f"{folder / 'report.html'}\n", done.output
    text = (folder / "report.html").read_text()
    read = Reader(text)
    assert read.open == []
    assert (read.fetched, "script" in read.tags) == ([], False)
    assert "url(" not in text
    assert "@import" not in text
    assert read.tags.count("svg") == 4, "loss, gradient norm, learning rate, speed; no MFU, no memory"
    words = re.sub(r"<[^>]+>", " ", text)
    for expected in (
        "finished 20 steps &lt;b&gt;&amp;",
        "20 of 20",
        "3.0000",
        "2.7500 (best 2.7500)",
        "2m05s",
        "OOMKilled",
    ):
        assert expected in words, expected
    assert "org/&lt;/pre&gt;&lt;script&gt;" in text


def test_later_attempt_replaces_steps_and_is_marked(folder):
    report(folder, "--out", folder / "page.html")
    text = (folder / "page.html").read_text()
    loss = re.search(r"<figcaption>Loss.*?</figure>", text, re.S)[0]
    points = re.search(r'<polyline class="c0" points="([^"]+)"', loss)[1].split()
    assert len(points) == 20, "each step once"
    assert "<title>attempt 2 from step 11</title>" in loss
    assert "<title>checkpoint of step 10</title>" in loss
    assert '<circle class="c1"' in loss, "one validation is a dot"


def test_folder_of_a_cluster_job_has_no_status(folder):
    (folder / "status.json").unlink()
    assert report(folder).exit_code == 0
    assert 'class="phase Unknown"' in (folder / "report.html").read_text()


def test_folder_without_a_run_is_an_error(tmp_path):
    done = report(tmp_path)
    assert done.exit_code == 2
    assert done.stderr == (
        f"{tmp_path}: has neither metrics.jsonl nor status.json; give the work folder of a run, such as runs/<job>\n"
    )


def test_page_that_cannot_be_written_is_an_error(folder):
    done = report(folder, "--out", folder / "none" / "page.html")
    assert (done.exit_code, done.stderr) == (2, f"{folder / 'none' / 'page.html'}: No such file or directory\n")


def test_spikes_of_a_long_run_are_kept():
    points = [(float(i), 1.0) for i in range(100_000)]
    points[54_321] = (54_321.0, 9.0)
    kept = thinned(points)
    assert len(kept) <= 602
    assert points[54_321] in kept
    assert (kept[0][0], kept[-1]) == (0.0, points[-1])


def test_ticks_of_a_nearly_constant_curve_differ():
    made = chart("Memory", "bytes", [("", [(step, 84e9 + step) for step in range(1, 100)])], [])
    labels = re.findall(r'text-anchor="end">([^<]+)<', made)
    assert len(labels) == len(set(labels)) > 2


def test_long_table_is_closed_at_first(folder):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("\n" + "".join(json.dumps(line("checkpoint", n, seconds=0.5)) + "\n" for n in range(11, 31)))
    report(folder)
    text = (folder / "report.html").read_text()
    assert "<h2>Checkpoints</h2><details><summary>21 rows</summary>" in text
    assert '<h2>Restarts</h2><div class="scroll">' in text


def test_curve_without_finite_values_makes_no_figure():
    assert chart("Loss", "loss", [("", [(1.0, float("nan"))])], []) == ""
    assert "<circle" in chart("Loss", "loss", [("", [(1.0, 2.0)])], [])


def test_every_chart_has_axis_titles_with_units(folder):
    more = {"stepSeconds": 2.0, "mfu": 0.412, "memoryPeakBytes": 3 * 2**30}
    records = [{**record, **more} if record["kind"] == "step" else record for record in RECORDS]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    report(folder)
    figures = re.findall(r"<figure>.*?</figure>", (folder / "report.html").read_text(), re.S)
    found = {}
    for figure in figures:
        title = re.search(r"<figcaption>([^<]+)", figure)[1]
        found[title] = re.findall(r'<text class="axis"[^>]*>([^<]+)<', figure)
    assert found == {
        "Loss": ["step", "loss"],
        "Gradient norm": ["step", "L2 norm"],
        "Learning rate": ["step", "learning rate"],
        "Throughput": ["step", "tokens/s"],
        "Step time": ["step", "seconds"],
        "MFU": ["step", "% of peak FLOP/s"],
        "Peak memory": ["step", "GiB"],
    }
    latest = [re.search(r'<b class="c0">\s*([^<]+)<', figure)[1] for figure in figures]
    assert latest == ["training 3", "1.5", "0.001", "1020 tokens/s", "2 s", "41.2 %", "3 GiB"]


def checkpoint_rows(folder):
    report(folder)
    table = (folder / "report.html").read_text().split("<h2>Checkpoints</h2>")[1].split("</table>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.S)
    return [tuple(re.findall(r"<t[hd]>(.*?)</t[hd]>", row)[:2]) for row in rows]


def test_table_of_checkpoints_shows_which_exist(folder):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("\n" + "".join(json.dumps(line("checkpoint", n, seconds=0.5)) + "\n" for n in (15, 20)))
    assert checkpoint_rows(folder) == [("step", "on disk"), *((n, "unknown") for n in ("10", "15", "20"))]
    for n in (15, 20):
        (folder / "checkpoint" / f"step-{n}").mkdir(parents=True)
    (folder / "checkpoint" / "step-x").mkdir()
    (folder / "checkpoint" / "step-20" / manifest.FILE_NAME).write_text("{}")
    assert checkpoint_rows(folder)[1:] == [("10", "deleted"), ("15", "incomplete"), ("20", "kept")]


def test_names_of_checkpoints_are_the_trainers(tmp_path):
    saved = tmp_path / page.CHECKPOINTS / "step-3"
    saved.mkdir(parents=True)
    manifest.seal(saved, {})
    assert [found.problem for found in manifest.scan(tmp_path / page.CHECKPOINTS)] == [None]
    assert page._on_disk(tmp_path / page.CHECKPOINTS) == {3: True}


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (1.1, 1.6, [1.1, 1.2, 1.3, 1.4, 1.5, 1.6]), (-1, 1, [-1, -0.5, 0, 0.5, 1])],
)
def test_ticks_are_round(low, high, expected):
    assert list(ticks(low, high, 5)) == expected


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0"), (4.12345, "4.123"), (0.0003, "0.0003"), (0.0001175, "1.175e-4"), (12_345, "12.35k"), (3.2e6, "3.2M")],
)
def test_numbers(value, words):
    assert number(value) == words
