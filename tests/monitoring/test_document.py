"""docs/monitoring.md matches the metrics, alerts, dashboards and scrape configuration."""

import json
import runpy

import yaml
from paths import ROOT
from promql import DASHBOARDS, scrape_jobs

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


def test_prometheus_accepts_the_scrape_jobs(promtool, tmp_path):
    (tmp_path / "targets.json").write_text("[]")
    targets = dict.fromkeys(("hftitan-trainers", "hftitan-operator"), tmp_path / "targets.json")
    config = {"scrape_configs": scrape_jobs(ROOT / "docs/monitoring.md", targets)}
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    assert "SUCCESS" in promtool("check", "config", tmp_path / "prometheus.yml")
