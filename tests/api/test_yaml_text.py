"""Parsing YAML: values as in Kubernetes, and hostile text is rejected quickly."""

from __future__ import annotations

import contextlib
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftitan_api.yamltext import NODE_LIMIT, SIZE_LIMIT, YamlError, parse

SCALARS = {
    "5e-5": 5e-5,
    "1e3": 1000.0,
    "-.5e2": -50.0,
    "1.": 1.0,
    "1_000": 1000,
    "0x10": 16,
    "010": 8,
    "08": "08",
    "1:30": "1:30",
    "2026-11-22": "2026-11-22",
    "1.5.2": "1.5.2",
    "yes": True,
    "off": False,
    "'yes'": "yes",
    "~": None,
    "": None,
    "=": "=",
    '"é😀"': "é😀",
    "9" * 39: int("9" * 39),
}


@pytest.mark.parametrize("text", SCALARS)
def test_scalar_types(text):
    value = parse(f"a: {text}").value["a"]
    assert (type(value), value) == (type(SCALARS[text]), SCALARS[text])


def test_line_of_a_field():
    document = parse("spec:\n  pod:\n    env:\n    - {name: A}\n    - name: B\n      value: x\n")
    assert document.line_of(("spec", "pod", "env", 1, "value")) == 6
    assert document.line_of(("spec", "pod", "env", 0)) == 4
    assert document.line_of(("spec", "pod", "nothing", "there")) == 2
    assert document.line_of(("elsewhere",)) is None


def test_a_field_hides_the_line_and_the_text_of_a_merged_one():
    document = parse("base: &b {a: 1, c: 2}\nmesh:\n  a: 010\n  <<: *b\n")
    assert document.written["mesh", "a"] == "010"
    assert (document.line_of(("mesh", "a")), document.line_of(("mesh", "c"))) == (3, 1)


def test_anchors_and_merges_are_expanded():
    text = "base: &b {tp: 2, pp: 1}\nmesh:\n  <<: *b\n  pp: 4\nsame: *b\n"
    assert parse(text).value == {"base": {"tp": 2, "pp": 1}, "mesh": {"tp": 2, "pp": 4}, "same": {"tp": 2, "pp": 1}}


@pytest.mark.parametrize("text", ["\ufeffa: 1", "---\na: 1\n", "a: 1\n---\n", "a: 1\n...\n", b"\xef\xbb\xbfa: 1"])
def test_document_markers_and_bom_are_ignored(text):
    assert parse(text).value == {"a": 1}


_LETTERS = "abcdefghi"
_LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in pairwise(_LETTERS)
)
_MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 9)}]}}\n" for before, name in pairwise(_LETTERS)
)

REJECTED = {
    "empty text": ("", "the file is empty"),
    "an empty document": ("---\n", "the file is empty"),
    "two documents": ("a: 1\n---\nb: 2", "line 3: a second document starts here; write one job per file"),
    "duplicate key": ("mesh:\n  tp: 1\n  tp: 2", "line 3: 'tp' is defined twice, first on line 2; keep one of them"),
    "number as key": ("1: x", "line 1: a key must be text, not '1'; put it in quotes"),
    "list as key": ("[a]: x", "line 1: a key must be text, not a list or mapping; put it in quotes"),
    "tab": ("a:\n\tb: 1", "line 2: tabs are not allowed; indent with spaces"),
    "unexpected colon": (
        "a: b: c",
        "line 1: unexpected ':'; check the indentation, and quote text that contains ': '",
    ),
    "open quote": ("a: 'x", "line 1: found unexpected end of stream"),
    "undefined alias": ("a: *x", "line 1: undefined alias 'x'; define its anchor before it"),
    "alias of itself": ("a: &a [*a]", "line 1: an alias contains itself; remove it"),
    "billion laughs": (_LAUGHS, f"line 1: its aliases expand to more than {NODE_LIMIT} values"),
    "billion merges": (_MERGES, f"line 2: its aliases expand to more than {NODE_LIMIT} values"),
    "deep nesting": ("[" * 100_000, "line 1: nested deeper than 64 levels"),
    "deep indentation": ("".join(" " * i + "a:\n" for i in range(100)), "line 65: nested deeper than 64 levels"),
    "many values": ("[" + "1," * NODE_LIMIT + "]", f"line 1: more than {NODE_LIMIT} values"),
    "many bytes": (" " * (SIZE_LIMIT + 1), f"{SIZE_LIMIT + 1} bytes are too many; use at most {SIZE_LIMIT}"),
    "Python object": (
        "a: !!python/object/apply:os.system [ls]",
        "line 1: the tag 'tag:yaml.org,2002:python/object/apply:os.system' is not allowed; write plain values",
    ),
    "binary": ("a: !!binary aGk=", "line 1: the tag 'tag:yaml.org,2002:binary' is not allowed; write plain values"),
    "tag that does not match": (
        "a: !!int ten",
        "a value does not match its tag; remove the tag (invalid literal for int() with base 10: 'ten')",
    ),
    "long number": ("a: " + "9" * 5000, "line 1: a number of 5000 characters is too long; use at most 40"),
    "NaN": ("b: 1\na: .nan", "line 2: infinity and NaN are not allowed; use a finite number"),
    "overflow": ("a: 1e999", "line 1: infinity and NaN are not allowed; use a finite number"),
    "NUL": ("b: 1\na: \x00", "line 2: U+0000 is not allowed in YAML; remove it"),
    "half of a surrogate pair": ('a: "\\ud800"', "line 1: half of a surrogate pair is not allowed in text; remove it"),
    "half of a surrogate pair as key": (
        '"\\udfff": 1',
        "line 1: half of a surrogate pair is not allowed in text; remove it",
    ),
    "not UTF-8": (b"a: \xff", "byte 3 is not UTF-8; save the file as UTF-8"),
    "unsupported YAML version": (
        "%YAML 9.9\n---\na: 1",
        "line 1: found incompatible YAML document (version 1.* is required)",
    ),
}


@pytest.mark.parametrize("case", REJECTED)
def test_exact_messages(case):
    text, message = REJECTED[case]
    start = time.monotonic()
    with pytest.raises(YamlError) as caught:
        parse(text)
    assert str(caught.value) == message
    assert time.monotonic() - start < 20  # takes tens of milliseconds; expanding the bombs would take hours


_HOSTILE = "ab:-[]{}&*!|>'\"#%,?\n\t <=0123456789.~"


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=_HOSTILE, max_size=60) | st.text(max_size=40) | st.binary(max_size=40))
def test_any_text_gives_a_value_or_a_yaml_error(text):
    with contextlib.suppress(YamlError):
        assert parse(text).lines[()] >= 1
