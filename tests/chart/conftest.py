import shutil

import pytest
from helm_chart import CHART


@pytest.fixture
def furnished(tmp_path):
    """The chart with one dashboard and one file of alerts, whatever it has itself."""
    copy = tmp_path / "hftitan"
    shutil.copytree(CHART, copy, ignore=shutil.ignore_patterns("dashboards", "rules"))
    for folder, name, text in (
        ("dashboards", "fleet.json", '{"title": "{{ fleet }}", "uid": "x"}\n'),
        ("rules", "alerts.yaml", "groups:\n  - name: g\n    rules:\n      - {alert: A, expr: up == 0}\n"),
    ):
        (copy / folder).mkdir()
        (copy / folder / name).write_text(text)
    return copy
