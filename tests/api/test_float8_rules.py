"""Where float8 cannot be: the field, the numbers and the fix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hftitan_api.mesh import check

TABLE: dict[str, tuple[dict[str, Any], list[str]]] = {
    "on GPUs": ({"training": {"float8": "rowwise", "seqLen": 48}}, []),
    "without": ({"training": {"seqLen": 24}, "mesh": {"device": "cpu"}}, []),
    "on processors": (
        {"training": {"float8": "rowwise_with_gw_hp"}, "mesh": {"device": "cpu"}},
        ["spec.training.float8: rowwise_with_gw_hp needs GPUs, and mesh.device is cpu; remove it"],
    ),
    "odd tokens": (
        {"training": {"float8": "rowwise", "seqLen": 40}},
        ["spec.training.seqLen: 40 is no multiple of 16 (float8) x cp 1 = 16; use 32 or 48"],
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_float8(spec: Callable[..., Any], name: str) -> None:
    changes, problems = TABLE[name]
    assert [str(problem) for problem in check(spec(**changes))] == problems
