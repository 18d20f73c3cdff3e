"""Saves the answers of Prometheus to the dashboards' queries as JSON, for hack/dashboard-pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from promql import DASHBOARDS, Prometheus, Query

STEP = 1.0
"""Seconds between two points of a curve."""


def record(prometheus: Prometheus, folder: Path, variables: Mapping[str, str], start: float, end: float) -> None:
    """Write one file per dashboard, with its name: the answers between two Unix times, by panel and query."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(DASHBOARDS.glob("*.json")):
        dashboard = json.loads(path.read_text())

        def ask(target: Mapping[str, Any]) -> Any:
            expr = Query("", target["expr"]).filled({**variables, "__interval": f"{STEP:g}s"}).expr
            if target.get("instant"):
                return prometheus.ask("query", query=expr, time=str(end))["result"]
            times = {"start": str(start), "end": str(end), "step": str(STEP)}
            return prometheus.ask("query_range", query=expr, **times)["result"]

        answers = {
            "start": start,
            "end": end,
            "panels": {
                panel["id"]: {target["refId"]: ask(target) for target in panel.get("targets", ())}
                for panel in dashboard["panels"]
            },
            "annotations": {note["name"]: ask(note) for note in dashboard["annotations"].get("list", ())},
        }
        (folder / path.name).write_text(json.dumps(answers, indent=1) + "\n")
