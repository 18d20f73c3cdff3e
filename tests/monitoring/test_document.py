"""docs/monitoring.md matches the metrics, alerts, dashboards and scrape configuration."""

import json
import runpy

import pytest
import yaml
from paths import ROOT
from promql import DASHBOARDS, discovers_pods, scrape_jobs

DOCUMENT = (ROOT / "docs/monitoring.md").read_text()


def test_metric_tables_are_up_to_date():
    document = runpy.run_path(str(ROOT / "hack/dashboards/document.py"))["document"]
    assert document(DOCUMENT) == DOCUMENT, "run `make generate`"


def test_sections_are_the_alerts_in_order():
    groups = yaml.safe_load((ROOT / "charts/hftitan/rules/hftitan.yaml").read_text())["groups"]
    alerts = [rule["alert"] for group in groups for rule in group["rules"]]
    assert [line[4:] for line in DOCUMENT.splitlines() if line.startswith("### ")] == alerts


def test_each_dashboard_is_listed():
    for path in DASHBOARDS.glob("*.json"):
        assert f"| {json.loads(path.read_text())['title']} |" in DOCUMENT


@pytest.mark.parametrize("document", ["docs/monitoring.md", "charts/hftitan/README.md"])
def test_prometheus_accepts_the_scrape_jobs(prometheus_programs, promtool, tmp_path, document):
    if not discovers_pods(prometheus_programs):
        pytest.skip("this Prometheus has no Kubernetes service discovery")
    config = {"scrape_configs": scrape_jobs(ROOT / document)}
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    assert "SUCCESS" in promtool("check", "config", tmp_path / "prometheus.yml")
