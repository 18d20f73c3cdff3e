"""The committed dashboards match the generator, query existing metrics, and have a valid layout."""

import json
import subprocess
import sys
from collections import Counter
from typing import get_args

import pytest
from paths import ROOT
from promql import DASHBOARDS, all_queries, metrics_of

from hftitan_api import metric_names as names
from hftitan_api.models import Phase

FILES = sorted(DASHBOARDS.glob("*.json"))
PROCESS = {"process_resident_memory_bytes", "process_cpu_seconds_total"}
"""From prometheus_client's ProcessCollector. tests/cluster/test_monitoring.py checks that they have data."""


def test_committed_dashboards_match_the_generator(tmp_path):
    subprocess.run([sys.executable, ROOT / "hack/dashboards", tmp_path], check=True)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_text() for path in FILES}, "run `make generate`"


def test_every_query_uses_existing_metrics():
    known = {name for metric in names.ALL for name in metric.series} | PROCESS
    for query in all_queries():
        assert metrics_of(query.expr), query
        assert metrics_of(query.expr) <= known, query


def test_every_metric_is_used_by_a_dashboard_or_an_alert():
    rules = (ROOT / "charts/hftitan/rules/hftitan.yaml").read_text()
    used = metrics_of(rules).union(*(metrics_of(query.expr) for query in all_queries()))
    unused = {metric.name for metric in names.ALL if used.isdisjoint(metric.series)}
    assert unused == set(), "add a panel or an alert, or remove the metric"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_panels_do_not_overlap(path):
    """The grid has 24 columns."""
    dashboard = json.loads(path.read_text())
    assert dashboard["uid"] == path.stem
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    places = Counter()
    for panel in dashboard["panels"]:
        grid = panel["gridPos"]
        assert grid.get("x", 0) + grid["w"] <= 24
        places.update(
            (x, y)
            for x in range(grid.get("x", 0), grid.get("x", 0) + grid["w"])
            for y in range(grid.get("y", 0), grid.get("y", 0) + grid["h"])
        )
    assert max(places.values()) == 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_panel_uses_the_selected_data_source(path):
    dashboard = json.loads(path.read_text())
    for panel in dashboard["panels"]:
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])


def panels(title):
    """Return all panels with this title."""
    return [p for path in FILES for p in json.loads(path.read_text())["panels"] if p["title"] == title]


def fixed_colors(panel):
    """Return series name -> colour, from the overrides of a panel."""
    return {
        override["matcher"]["options"]: entry["value"]["fixedColor"]
        for override in panel["fieldConfig"]["overrides"]
        for entry in override["properties"]
        if entry["id"] == "color"
    }


@pytest.mark.parametrize("title", ["Jobs by phase", "GPUs requested by phase", "Phase"])
def test_each_job_phase_has_its_own_fixed_colour(title):
    [panel] = panels(title)
    colors = fixed_colors(panel)
    assert colors.keys() == set(get_args(Phase))
    assert len(set(colors.values())) == len(colors)
    assert (colors["Running"], colors["Failed"], colors["Succeeded"]) == ("green", "red", "blue")


def test_phases_in_the_job_table_have_the_colours_of_the_charts():
    [table], [chart] = panels("Waiting and suspended jobs"), panels("Jobs by phase")
    [mappings] = (
        entry["value"]
        for override in table["fieldConfig"]["overrides"]
        if override["matcher"]["options"] == "phase"
        for entry in override["properties"]
        if entry["id"] == "mappings"
    )
    assert {phase: shown["color"] for phase, shown in mappings[0]["options"].items()} == fixed_colors(chart)


def test_each_restart_is_one_bar(promtool, tmp_path):
    """At a step of 1 m, a restart at 5m30s is shown at 6m only. Counter resets and gaps show no restart."""
    [panel] = panels("Restarts by reason")
    [target] = panel["targets"]
    series = 'hftitan_operator_restarts_total{reason="%s", instance="one"}'
    reset = {"series": series % "OOMKilled", "values": "0x10 1x10 0x40"}
    gap = {"series": series % "Evicted", "values": "7x10 _x20 7x40"}
    expected = {6: [{"labels": '{reason="OOMKilled"}', "value": 1}]}
    expr = target["expr"].replace("$__interval", "1m")
    samples = [{"expr": expr, "eval_time": f"{m}m", "exp_samples": expected.get(m, [])} for m in range(26)]
    test = {"interval": "30s", "input_series": [reset, gap], "promql_expr_test": samples}
    (tmp_path / "test.yaml").write_text(json.dumps({"evaluation_interval": "30s", "tests": [test]}))
    promtool("test", "rules", tmp_path / "test.yaml")
