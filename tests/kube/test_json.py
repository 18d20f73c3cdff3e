"""JSON to and from the API server: orjson, with Python's library for values that orjson does not support."""

import json
import sys

import pytest

from hftitan_operator.kube.api import _read, _text


@pytest.mark.parametrize("value", [{"a": [1, 2.5, None, True, "ü"]}, {"big": 2**70}, {"half": "\ud800"}, {"": {}}])
def test_json_values_round_trip(value):
    assert json.loads(_text(value)) == value
    assert _read(json.dumps(value).encode()) == value  # 2**70 becomes a float, as in the API server


def test_objects_nested_deeper_than_orjson_supports():
    depth, limit = 5000, sys.getrecursionlimit()
    sys.setrecursionlimit(25_000)
    try:
        value = _read(b'{"a":' * depth + b"1" + b"}" * depth)
        for _ in range(depth):
            value = value["a"]
    finally:
        sys.setrecursionlimit(limit)
    assert value == 1


@pytest.mark.parametrize("text", [b"", b"{", b"<html>", b"\xff"])
def test_invalid_json_is_a_value_error(text):
    with pytest.raises(ValueError):
        _read(text)
