"""Rules of float8: the exact message of each error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hftitan_api.mesh import check

TABLE: dict[str, tuple[dict[str, Any], list[str]]] = {
    "on GPUs": ({"training": {"float8": "rowwise", "seqLen": 48}}, []),
    "without float8": ({"training": {"seqLen": 24}, "mesh": {"device": "cpu"}}, []),
    "on CPUs": (
        {"training": {"float8": "rowwise_with_gw_hp"}, "mesh": {"device": "cpu"}},
        ["spec.training.float8: rowwise_with_gw_hp needs mesh.device: gpu, and mesh.device is cpu; remove it"],
    ),
    "seqLen not a multiple of 16": (
        {"training": {"float8": "rowwise", "seqLen": 40}},
        ["spec.training.seqLen: 40 is not a multiple of 16 (float8) x cp 1 = 16; use 32 or 48"],
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_float8_messages(spec: Callable[..., Any], name: str) -> None:
    changes, problems = TABLE[name]
    assert [str(problem) for problem in check(spec(**changes))] == problems
