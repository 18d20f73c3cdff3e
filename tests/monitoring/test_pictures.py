"""The pictures in docs/monitoring.md are of the dashboards as they are, and say what they are."""

import json
import xml.etree.ElementTree as ET

import pytest
from panels import Moments, Place, draw, series
from paths import ROOT
from promql import DASHBOARDS
from units import clock_marks, marks, words

FILES = sorted(DASHBOARDS.glob("*.json"))
SVG = "{http://www.w3.org/2000/svg}"
CAPTION = "Drawn from the answers of Prometheus to the panels' queries during the test run on CPUs"


def drawn(picture):
    """Panel -> its place, its queries, the words that are seen."""
    return {
        group.get("data-panel"): (
            group.get("data-grid"),
            group.findtext(f"{SVG}title"),
            [text.text for text in group.iter(f"{SVG}text")],
        )
        for group in picture.iter(f"{SVG}g")
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_panel_is_in_the_picture(path):
    dashboard = json.loads(path.read_text())
    found = drawn(ET.parse(ROOT / "docs/pictures" / f"{path.stem}.svg"))
    assert len(found) == len(dashboard["panels"])
    for panel in dashboard["panels"]:
        grid = panel["gridPos"]
        place, asks, seen = found[str(panel["id"])]
        assert panel["title"] in seen, f"run `make pictures`: {panel['title']} is not in it"
        assert asks == "\n".join(target["expr"] for target in panel.get("targets", ())), "run `make pictures`"
        assert place == " ".join(str(grid.get(key, 0)) for key in "xywh"), "run `make pictures`"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_picture_is_shown_small_and_says_what_it_is(path):
    text = (ROOT / "docs/pictures" / f"{path.stem}.svg").read_text()
    assert f"(pictures/{path.stem}.svg)" in (ROOT / "docs/monitoring.md").read_text()
    assert f"{CAPTION}, not a screenshot of Grafana." in text
    assert len(text) < 200_000
    assert "script" not in text


def panel(kind="timeseries", title="A title", unit="short", legend="{{node}}", **custom):
    defaults = {"unit": unit, "custom": custom}
    target = {"refId": "A", "legendFormat": legend, "expr": "x"}
    return {
        "type": kind, "title": title, "targets": [target],
        "fieldConfig": {"defaults": defaults, "overrides": []}, "options": {"textMode": "value"},
    }  # fmt: skip


def answer(*points, **labels):
    return {"metric": labels, "values": [[t, str(v)] for t, v in points]}


def elements(shown, *answers, moments=(), span=(0.0, 10.0)):
    parts = draw(shown, Place(0, 0, 400, 200), series(shown, {"A": answers}), moments, span)
    return ET.fromstring(f"<svg>{''.join(parts)}</svg>")


def texts(made):
    return [text.text for text in made.iter("text")]


def curves(made):
    return [line.get("points").split() for line in made.iter("polyline")]


def test_a_gap_in_the_answers_is_a_gap_in_the_curve():
    made = elements(panel(), answer((0, 1), (1, 2), (2, 3), (7, 4), (8, 5), node="a"))
    assert [len(places) for places in curves(made)] == [3, 2]
    assert "a" in texts(made)


def test_values_that_are_no_numbers_are_left_out():
    made = elements(panel(), answer((0, 1), (1, "NaN"), (2, "+Inf"), (3, 1), node="a"))
    assert [len(places) for places in curves(made)] == [2]
    assert texts(elements(panel(), answer((0, "NaN")))) == ["A title", "No data"]


def test_stacked_series_lie_on_each_other():
    made = elements(
        panel(stacking={"mode": "normal"}), answer((0, 1), (1, 1), node="a"), answer((0, 2), (1, 2), node="b")
    )
    low, high = ({float(place.split(",")[1]) for place in places} for places in curves(made))
    bottom = max(float(p.split(",")[1]) for p in next(made.iter("polygon")).get("points").split())
    assert bottom - high.pop() == pytest.approx(3 * (bottom - low.pop()), abs=0.3)


def test_moments_are_marked_where_the_axis_has_them():
    marked = elements(panel(), answer((0, 1), (10, 1)), moments=[Moments("Checkpoint", (5.0, 11.0))])
    [mark] = [line for line in marked.iter("line") if line.get("class") == "Checkpoint"]
    ends = [float(places[i].split(",")[0]) for places in curves(marked) for i in (0, -1)]
    assert float(mark.get("x1")) == pytest.approx(sum(ends) / 2, abs=0.2)


def test_more_names_than_there_is_room_for_are_counted():
    made = elements(panel(), *(answer((0, 1), (1, 1), node=f"a-rather-long-name-{i:02}") for i in range(20)))
    names = [text for text in texts(made) if text.startswith("a-rather")]
    assert f"and {20 - len(names)} more" in texts(made)


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [
        (0.1234, "percentunit", "12.3%"), (0.0125, "s", "12.5 ms"), (3.2e-5, "s", "32 µs"), (1.5, "s", "1.5 s"),
        (125, "s", "2m05s"), (0, "s", "0 s"), (3 * 2**20, "bytes", "3 MiB"), (0, "bytes", "0 B"),
        (0.25, "ops", "0.25 ops/s"), (5e-5, "sci", "5e-05"), (12_345, "short", "12.35k"),
    ],
)  # fmt: skip
def test_units(value, unit, said):
    assert words(value, unit) == said


def test_an_unknown_unit_or_panel_is_refused():
    with pytest.raises(ValueError, match="add the unit furlongs"):
        words(1, "furlongs")
    with pytest.raises(ValueError, match="A title: panels of type heatmap are not drawn"):
        elements(panel("heatmap"), answer((0, 1)))


def test_marks_are_round():
    assert marks(75.5 * 2**20, 79 * 2**20, "bytes") == [n * 2**20 for n in (76, 77, 78, 79)]
    assert clock_marks(125) == [0, 30, 60, 90, 120]
