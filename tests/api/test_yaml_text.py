"""YAML in, JSON values out: read as Kubernetes reads it, and nothing a text holds can hurt or stall."""

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
def test_scalar(text):
    value = parse(f"a: {text}").value["a"]
    assert (type(value), value) == (type(SCALARS[text]), SCALARS[text])


def test_lines_of_fields():
    document = parse("spec:\n  pod:\n    env:\n    - {name: A}\n    - name: B\n      value: x\n")
    assert document.line_of(("spec", "pod", "env", 1, "value")) == 6
    assert document.line_of(("spec", "pod", "env", 0)) == 4
    assert document.line_of(("spec", "pod", "nothing", "there")) == 2
    assert document.line_of(("elsewhere",)) is None


def test_anchors_and_merges_work():
    text = "base: &b {tp: 2, pp: 1}\nmesh:\n  <<: *b\n  pp: 4\nsame: *b\n"
    assert parse(text).value == {"base": {"tp": 2, "pp": 1}, "mesh": {"tp": 2, "pp": 4}, "same": {"tp": 2, "pp": 1}}


@pytest.mark.parametrize("text", ["\ufeffa: 1", "---\na: 1\n", "a: 1\n---\n", "a: 1\n...\n", b"\xef\xbb\xbfa: 1"])
def test_one_document_however_it_is_wrapped(text):
    assert parse(text).value == {"a": 1}


_LETTERS = "abcdefghi"
_LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in pairwise(_LETTERS)
)
_MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 9)}]}}\n" for before, name in pairwise(_LETTERS)
)

REFUSED = {
    "nothing": ("", "the file is empty"),
    "an empty document": ("---\n", "the file is empty"),
    "two documents": ("a: 1\n---\nb: 2", "line 3: a second document starts here; write one job per file"),
    "a key given twice": ("mesh:\n  tp: 1\n  tp: 2", "line 3: 'tp' is given twice, first on line 2"),
    "a number as key": ("1: x", "line 1: the key '1' is no text; put it in quotes"),
    "a list as key": ("[a]: x", "line 1: the key a list or mapping is no text; put it in quotes"),
    "a tab": ("a:\n\tb: 1", "line 2: a tab; YAML is indented with spaces"),
    "a colon too many": (
        "a: b: c",
        "line 1: a ':' where none can be; check the indentation, and quote text that holds ': '",
    ),
    "an open quote": ("a: 'x", "line 1: found unexpected end of stream"),
    "an unknown alias": ("a: *x", "line 1: undefined alias 'x'; no anchor of this name comes before it"),
    "an alias of itself": ("a: &a [*a]", "line 1: an alias that contains itself"),
    "a billion laughs": (_LAUGHS, f"line 1: its aliases unfold into more than {NODE_LIMIT} values"),
    "a billion merges": (_MERGES, f"line 2: its aliases unfold into more than {NODE_LIMIT} values"),
    "a deep nest": ("[" * 100_000, "line 1: nested deeper than 64 levels"),
    "a deep indent": ("".join(" " * i + "a:\n" for i in range(100)), "line 65: nested deeper than 64 levels"),
    "many values": ("[" + "1," * NODE_LIMIT + "]", f"line 1: more than {NODE_LIMIT} values"),
    "many bytes": (" " * (SIZE_LIMIT + 1), f"{SIZE_LIMIT + 1} bytes are more than a job may have ({SIZE_LIMIT})"),
    "a Python object": (
        "a: !!python/object/apply:os.system [ls]",
        "line 1: the tag 'tag:yaml.org,2002:python/object/apply:os.system' is not allowed; write plain values",
    ),
    "binary": ("a: !!binary aGk=", "line 1: the tag 'tag:yaml.org,2002:binary' is not allowed; write plain values"),
    "a tag that does not fit": (
        "a: !!int ten",
        "a value that its tag does not fit: invalid literal for int() with base 10: 'ten'",
    ),
    "a number without end": ("a: " + "9" * 5000, "line 1: a number of 5000 characters"),
    "not a number": ("b: 1\na: .nan", "line 2: infinite and NaN are no values of a job"),
    "an overflow": ("a: 1e999", "line 1: infinite and NaN are no values of a job"),
    "a NUL": ("b: 1\na: \x00", "line 2: the character U+0000 may not stand in YAML"),
    "half a surrogate": ('a: "\\ud800"', "line 1: half of a surrogate pair is no text"),
    "half a surrogate as key": ('"\\udfff": 1', "line 1: half of a surrogate pair is no text"),
    "not UTF-8": (b"a: \xff", "byte 3 is not UTF-8"),
    "a directive": ("%YAML 9.9\n---\na: 1", "line 1: found incompatible YAML document (version 1.* is required)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    text, said = REFUSED[case]
    start = time.monotonic()
    with pytest.raises(YamlError) as caught:
        parse(text)
    assert str(caught.value) == said
    assert time.monotonic() - start < 20  # tens of milliseconds; the bombs would take hours


_HOSTILE = "ab:-[]{}&*!|>'\"#%,?\n\t <=0123456789.~"


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=_HOSTILE, max_size=60) | st.text(max_size=40) | st.binary(max_size=40))
def test_whatever_the_text_it_is_a_value_or_a_yaml_error(text):
    with contextlib.suppress(YamlError):
        assert parse(text).lines[()] >= 1
