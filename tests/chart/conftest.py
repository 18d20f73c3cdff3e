import shutil

import pytest
from helm_chart import CHART


@pytest.fixture
def chart_copy(tmp_path):
    """A copy of the chart with exactly one small dashboard and one rule file."""
    copy = tmp_path / "hftitan"
    shutil.copytree(CHART, copy, ignore=shutil.ignore_patterns("dashboards", "rules"))
    for folder, name, text in (
        ("dashboards", "fleet.json", '{"title": "{{ fleet }}", "uid": "x"}\n'),
        ("rules", "alerts.yaml", "groups:\n  - name: g\n    rules:\n      - {alert: A, expr: up == 0}\n"),
    ):
        (copy / folder).mkdir()
        (copy / folder / name).write_text(text)
    return copy
