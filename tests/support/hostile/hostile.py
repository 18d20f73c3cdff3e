"""Jobs that somebody wrote to break something: `TABLE`, with who has to stop each. Importable from anywhere.

`python tests/support/hostile/hostile.py` prints those that can be posted to an API server, as JSON, one a line.
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
