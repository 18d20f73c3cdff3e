"""The committed dashboards are those that the generator makes, and ask for what exists."""

import json
import subprocess
import sys
from collections import Counter

import pytest
from paths import ROOT
from promql import DASHBOARDS, all_queries, metrics_of

from hftitan_api import metric_names as names

FILES = sorted(DASHBOARDS.glob("*.json"))
PROCESS = {"process_resident_memory_bytes", "process_cpu_seconds_total"}
"""Of prometheus_client's ProcessCollector; tests/cluster/test_monitoring.py asks for them in earnest."""


def test_they_are_as_generated(tmp_path):
    subprocess.run([sys.executable, ROOT / "hack/dashboards", tmp_path], check=True)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_text() for path in FILES}, "run `make generate`"


def test_every_query_asks_for_metrics_that_exist():
    known = {name for metric in names.ALL for name in metric.series} | PROCESS
    for query in all_queries():
        assert metrics_of(query.expr), query
        assert metrics_of(query.expr) <= known, query


def test_every_metric_is_shown_or_watched():
    rules = (ROOT / "charts/hftitan/rules/hftitan.yaml").read_text()
    used = metrics_of(rules).union(*(metrics_of(query.expr) for query in all_queries()))
    unused = {metric.name for metric in names.ALL if used.isdisjoint(metric.series)}
    assert unused == set(), "a metric that nobody reads costs and helps nobody"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_panels_lie_beside_each_other(path):
    """24 columns; no two in one place."""
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
def test_the_user_picks_the_data_source(path):
    dashboard = json.loads(path.read_text())
    for panel in dashboard["panels"]:
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])
