"""Hostile jobs: `TABLE` lists jobs that try to break something, and what must stop each of them.

`python tests/support/hostile/hostile.py` prints those that can be posted to an API server, one JSON object per line.
"""

from __future__ import annotations

import json
from dataclasses import asdict

import hostile_pod
import hostile_spec
import hostile_text
from hostile_job import NOBODY, OPERATOR, SERVER, STATUS, Hostile

__all__ = ["BY_ID", "NOBODY", "OPERATOR", "SERVER", "STATUS", "TABLE", "Hostile"]

TABLE: tuple[Hostile, ...] = (*hostile_spec.TABLE, *hostile_pod.TABLE, *hostile_text.TABLE)
BY_ID = {hostile.id: hostile for hostile in TABLE}

if __name__ == "__main__":
    for hostile in TABLE:
        if hostile.carrier == "json":
            print(json.dumps(asdict(hostile), allow_nan=False))
