"""Draws docs/pictures from recorded results of the dashboards' queries.

    python hack/dashboard-pictures ANSWERS [FOLDER]

ANSWERS is the folder that tests/cluster/test_monitoring.py writes. `make pictures` runs both.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from panels import Moments, Place, draw, series
from svg import STYLE, box, line, text

ROOT = Path(__file__).parents[2]
DASHBOARDS = ROOT / "charts/hftitan/dashboards"
PICTURES = ROOT / "docs/pictures"
CAPTION = (
    "Drawn from the results of the panels' Prometheus queries during the test run on CPUs, not a screenshot of Grafana."
)
WIDTH, UNIT, GAP, HEAD = 1200, 26, 8, 62
"""Pixels: total width (24 columns), height of a grid row, space between panels, space above them."""


def picture(dashboard: Mapping[str, Any], answers: Mapping[str, Any]) -> str:
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    height = HEAD + rows * UNIT + GAP
    span = (answers["start"], answers["end"])
    moments = [
        # The series' values are Unix times in milliseconds.
        Moments(name, tuple(sorted({float(v) / 1e3 for one in found for _, v in one["values"]})))
        for name, found in answers["annotations"].items()
    ]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(dashboard['title'])}: {escape(dashboard['description'])}</title>",
        f"<desc>{escape(CAPTION, quote=False)}</desc><style>{STYLE}</style>",
        box(0, 0, WIDTH, height, "bg"),
        text(GAP, 26, dashboard["title"], "head"),
        text(GAP, 46, CAPTION + f" Time range: {span[1] - span[0]:.0f} seconds.", "dim"),
        *_key(moments),
    ]
    for panel in sorted(dashboard["panels"], key=lambda p: p["id"]):
        shown = series(panel, answers["panels"][str(panel["id"])])
        # tests/monitoring/test_pictures.py compares the queries and the grid position with the dashboard.
        asks = "\n".join(target["expr"] for target in panel.get("targets", ()))
        grid = panel["gridPos"]
        place = " ".join(str(grid.get(key, 0)) for key in "xywh")
        parts.append(f'<g data-panel="{panel["id"]}" data-grid="{place}"><title>{escape(asks, quote=False)}</title>')
        parts += draw(panel, _place(grid), shown, moments, span)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def _place(grid: Mapping[str, int]) -> Place:
    column = (WIDTH - GAP) / 24
    x, y = GAP + grid.get("x", 0) * column, HEAD + grid.get("y", 0) * UNIT
    return Place(x, y, grid["w"] * column - GAP, grid["h"] * UNIT - GAP)


def _key(moments: list[Moments]) -> list[str]:
    """Return the legend of the annotations."""
    parts, x = [], WIDTH - 220.0
    for moment in moments:
        kind = moment.kind.replace(" ", "-")
        parts += [line(x, 16, x, 28, kind), text(x + 7, 26, moment.kind)]
        x += 120
    return parts


def main(answers: Path, folder: Path = PICTURES) -> None:
    folder.mkdir(exist_ok=True)
    for path in sorted(DASHBOARDS.glob("*.json")):
        made = picture(json.loads(path.read_text()), json.loads((answers / path.name).read_text()))
        (folder / path.with_suffix(".svg").name).write_text(made)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    main(*map(Path, sys.argv[1:]))
