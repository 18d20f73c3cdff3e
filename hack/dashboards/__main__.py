"""Writes the Grafana dashboards of the chart: python hack/dashboards [FOLDER]"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fleet import fleet
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from health import health
from job import job

FOLDER = Path(__file__).parents[2] / "charts/hftitan/dashboards"


def main(folder: Path) -> None:
    for make in (fleet, job, health):
        made = make().build()
        for number, panel in enumerate(made.panels or (), 1):
            panel.id_val = number
        text = json.dumps(made, cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False)
        (folder / f"{made.uid}.json").write_text(text + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else FOLDER)
