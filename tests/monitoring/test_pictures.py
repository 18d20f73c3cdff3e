"""The pictures in docs/monitoring.md match the dashboards, and panels are drawn correctly."""

import json
import xml.etree.ElementTree as ET

import pytest
from panels import Moments, Place, draw, series
from paths import ROOT
from promql import DASHBOARDS
from units import clock_marks, marks, words

FILES = sorted(DASHBOARDS.glob("*.json"))
SVG = "{http://www.w3.org/2000/svg}"
CAPTION = "Drawn from the results of the panels' Prometheus queries during the test run on CPUs"


def drawn(picture):
    """Return panel id -> (grid position, queries, texts)."""
    return {
        group.get("data-panel"): (
            group.get("data-grid"),
            group.findtext(f"{SVG}title"),
            [text.text for text in group.iter(f"{SVG}text")],
        )
        for group in picture.iter(f"{SVG}g")
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_picture_shows_each_panel(path):
    dashboard = json.loads(path.read_text())
    found = drawn(ET.parse(ROOT / "docs/pictures" / f"{path.stem}.svg"))
    assert len(found) == len(dashboard["panels"])
    for panel in dashboard["panels"]:
        grid = panel["gridPos"]
        place, asks, seen = found[str(panel["id"])]
        assert panel["title"] in seen, f"run `make pictures`: {panel['title']} is missing"
        assert asks == "\n".join(target["expr"] for target in panel.get("targets", ())), "run `make pictures`"
        assert place == " ".join(str(grid.get(key, 0)) for key in "xywh"), "run `make pictures`"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_picture_is_linked_small_and_labelled_as_drawn(path):
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


def test_gap_in_the_data_is_a_gap_in_the_curve():
    made = elements(panel(), answer((0, 1), (1, 2), (2, 3), (7, 4), (8, 5), node="a"))
    assert [len(places) for places in curves(made)] == [3, 2]
    assert "a" in texts(made)


def test_nan_and_infinite_values_are_not_drawn():
    made = elements(panel(), answer((0, 1), (1, "NaN"), (2, "+Inf"), (3, 1), node="a"))
    assert [len(places) for places in curves(made)] == [2]
    assert texts(elements(panel(), answer((0, "NaN")))) == ["A title", "No data"]


def test_stacked_series_are_added():
    made = elements(
        panel(stacking={"mode": "normal"}), answer((0, 1), (1, 1), node="a"), answer((0, 2), (1, 2), node="b")
    )
    low, high = ({float(place.split(",")[1]) for place in places} for places in curves(made))
    bottom = max(float(p.split(",")[1]) for p in next(made.iter("polygon")).get("points").split())
    assert bottom - high.pop() == pytest.approx(3 * (bottom - low.pop()), abs=0.3)


def test_annotations_are_drawn_at_their_time():
    marked = elements(panel(), answer((0, 1), (10, 1)), moments=[Moments("Checkpoint", (5.0, 11.0))])
    [mark] = [line for line in marked.iter("line") if line.get("class") == "Checkpoint"]
    ends = [float(places[i].split(",")[0]) for places in curves(marked) for i in (0, -1)]
    assert float(mark.get("x1")) == pytest.approx(sum(ends) / 2, abs=0.2)


def test_legend_counts_the_names_that_do_not_fit():
    made = elements(panel(), *(answer((0, 1), (1, 1), node=f"a-rather-long-name-{i:02}") for i in range(20)))
    names = [text for text in texts(made) if text.startswith("a-rather")]
    assert f"and {20 - len(names)} more" in texts(made)


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0.1234, "percentunit", "12.3%"), (0.0125, "s", "12.5 ms"), (3.2e-5, "s", "32 µs"), (1.5, "s", "1.5 s"),
        (125, "s", "2m05s"), (0, "s", "0 s"), (3 * 2**20, "bytes", "3 MiB"), (0, "bytes", "0 B"),
        (0.25, "ops", "0.25 ops/s"), (5e-5, "sci", "5e-05"), (12_345, "short", "12.35k"),
    ],
)  # fmt: skip
def test_values_are_formatted_in_their_unit(value, unit, expected):
    assert words(value, unit) == expected


def test_unknown_unit_panel_type_or_colour_raises():
    with pytest.raises(ValueError, match="add the unit furlongs"):
        words(1, "furlongs")
    with pytest.raises(ValueError, match="A title: panels of type heatmap are not drawn"):
        elements(panel("heatmap"), answer((0, 1)))
    with pytest.raises(ValueError, match="add the color pink"):
        elements(with_color("a", "pink"), answer((0, 1), node="a"))


def with_color(name, color):
    made = panel()
    fixed = {"id": "color", "value": {"mode": "fixed", "fixedColor": color}}
    made["fieldConfig"]["overrides"].append({"matcher": {"id": "byName", "options": name}, "properties": [fixed]})
    return made


def test_fixed_colour_applies_to_its_series_only():
    made = elements(with_color("b", "red"), answer((0, 1), (1, 1), node="a"), answer((0, 2), (1, 2), node="b"))
    assert [line.get("class") for line in made.iter("polyline")] == ["curve s0", "curve sred"]


def test_axis_marks_are_round_numbers():
    assert marks(75.5 * 2**20, 79 * 2**20, "bytes") == [n * 2**20 for n in (76, 77, 78, 79)]
    assert clock_marks(125) == [0, 30, 60, 90, 120]
