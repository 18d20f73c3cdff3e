"""The alert rules pass promtool's unit tests, use existing metrics, and are documented."""

import re
from pathlib import Path

import pytest
import yaml
from paths import ROOT
from promql import metrics_of

from hftitan_api import metric_names as names

RULES = ROOT / "charts/hftitan/rules/hftitan.yaml"
TESTS = Path(__file__).with_name("alerts.yaml")
ALERTS = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def test_promtool_accepts_the_rules(promtool):
    assert f"SUCCESS: {len(ALERTS)} rules found" in promtool("check", "rules", RULES)


def test_promtool_unit_tests_pass(promtool, say):
    promtool("test", "rules", TESTS)
    cases = [case for test in yaml.safe_load(TESTS.read_text())["tests"] for case in test.get("alert_rule_test", ())]
    say(f"{len(ALERTS)} alerts, {len(cases)} promtool tests of them")


@pytest.mark.parametrize("fires", [True, False], ids=["fires", "does-not-fire"])
@pytest.mark.parametrize("alert", ALERTS, ids=[rule["alert"] for rule in ALERTS])
def test_each_alert_has_a_unit_test(alert, fires):
    tests = [case for test in yaml.safe_load(TESTS.read_text())["tests"] for case in test.get("alert_rule_test", ())]
    assert any(case["alertname"] == alert["alert"] and bool(case["exp_alerts"]) == fires for case in tests)


@pytest.mark.parametrize("alert", ALERTS, ids=[rule["alert"] for rule in ALERTS])
def test_each_alert_uses_existing_metrics_and_links_to_its_section(alert):
    assert metrics_of(alert["expr"]) <= {name for metric in names.ALL for name in metric.series}
    assert set(alert["annotations"]) == {"summary", "description", "runbook"}
    document, _, anchor = alert["annotations"]["runbook"].partition("#")
    section = re.search(rf"^### {alert['alert']}\n\n(.+)", (ROOT / document).read_text(), re.MULTILINE)
    assert anchor == alert["alert"].lower()
    assert section is not None
