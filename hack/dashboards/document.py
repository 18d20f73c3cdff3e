"""Rewrites the metrics table in docs/monitoring.md from hftitan_api.metric_names: python hack/dashboards/document.py"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hftitan_api import metric_names as names

DOCUMENT = Path(__file__).parents[2] / "docs/monitoring.md"
BEGIN, END = "<!-- metrics: begin, made by `make generate` -->\n", "<!-- metrics: end -->\n"


def table(metrics: Iterable[names.Metric]) -> str:
    rows = [("metric", "type", "labels", "what it is"), ("---",) * 4]
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        rows.append((f"`{metric.name}`", metric.type, labels, metric.help))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def document(text: str) -> str:
    """The document with its table made anew."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    common = ", ".join(f"`{label}`" for label in names.COMMON_LABELS)
    made = (
        f"\nOf a trainer, one pod each; all have the labels {common} beside their own:\n\n{table(names.TRAINER)}"
        f"\nOf the operator:\n\n{table(names.OPERATOR)}\n"
    )
    return f"{before}{BEGIN}{made}{END}{after}"


if __name__ == "__main__":
    DOCUMENT.write_text(document(DOCUMENT.read_text()))
