"""Parses one YAML document into plain JSON values with the line of every field. Safe on untrusted text.

Values have the same types as with `kubectl`: `5e-5` is a number, a date is text, anchors and merges work. YAML that a
job does not need is rejected: several documents, duplicate keys, tags, and aliases that expand to too many values.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

SIZE_LIMIT = 1024 * 1024
"""Bytes of a document. etcd limits an object to 1.5 MiB."""
NODE_LIMIT = 20_000
"""Values of a document after the expansion of aliases."""
DEPTH_LIMIT = 64
"""Levels of nesting."""
NUMBER_LIMIT = 40
"""Characters of a whole number."""

FieldPath = tuple[str | int, ...]


class YamlError(ValueError):
    """The text is not a valid YAML document. `line` counts from 1."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message if line is None else f"line {line}: {message}")
        self.message = message
        self.line = line


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed document."""

    value: Any
    lines: dict[FieldPath, int] = field(default_factory=dict)
    """Line of each field, from 1, by path, for example `("spec", "pod", "env", 2)`."""
    written: dict[FieldPath, str] = field(default_factory=dict)
    """Text of each number and boolean, for example `0012345`."""

    def line_of(self, path: FieldPath) -> int | None:
        """Return the line of the field, or of its nearest parent in the document."""
        while path:
            if path in self.lines:
                return self.lines[path]
            path = path[:-1]
        return None


class _Loader(yaml.SafeLoader):
    """A SafeLoader that reads scalars as Kubernetes does: no sexagesimal numbers, no dates, `5e-5` is a float."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in ("bool", "null", "merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"[-+]?(0|[1-9][0-9_]*|0[0-7_]+|0x[0-9a-fA-F_]+|0b[01_]+)\Z"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?\Z|[-+]?\.(inf|Inf|INF)\Z|\.(nan|NaN|NAN)\Z"
    ),
    list("-+.0123456789"),
)
_PLAIN_TAGS = frozenset(
    f"tag:yaml.org,2002:{t}" for t in ("str", "int", "float", "bool", "null", "map", "seq", "merge")
)
_NOT_TEXT = frozenset(f"tag:yaml.org,2002:{t}" for t in ("int", "float", "bool"))


def parse(text: str | bytes) -> Document:
    """Parse the only document of the text. Raises YamlError, and no other exception, for invalid text."""
    if len(text) > SIZE_LIMIT:
        raise YamlError(f"{len(text)} bytes are too many; use at most {SIZE_LIMIT}")
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text.removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise YamlError(f"byte {error.start} is not UTF-8; save the file as UTF-8") from None
    try:
        _check_events(decoded)
        return _construct(decoded)
    except yaml.MarkedYAMLError as error:
        raise _readable(error) from None
    except yaml.reader.ReaderError as error:
        line = decoded.count("\n", 0, error.position) + 1
        raise YamlError(f"U+{_code(error.character):04X} is not allowed in YAML; remove it", line) from None
    except yaml.YAMLError as error:
        raise YamlError(str(error)) from None
    except YamlError:
        raise
    except ValueError as error:  # a tag that does not match the text: `!!int ten`
        raise YamlError(f"a value does not match its tag; remove the tag ({error})") from None


def _check_events(text: str) -> None:
    """Reject text that is too large or too deep to build a tree from. Reading events needs no recursion."""
    depth = nodes = documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else None
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.DocumentStartEvent):
            documents += 1
        if isinstance(event, yaml.NodeEvent):
            nodes += 1
            if documents > 1 and not _is_empty(event):
                raise YamlError("a second document starts here; write one job per file", line)
        if depth > DEPTH_LIMIT:
            raise YamlError(f"nested deeper than {DEPTH_LIMIT} levels", line)
        if nodes > NODE_LIMIT:
            raise YamlError(f"more than {NODE_LIMIT} values", line)


def _is_empty(event: yaml.Event) -> bool:
    return isinstance(event, yaml.ScalarEvent) and event.value == "" and event.style is None


def _construct(text: str) -> Document:
    loader = _Loader(text)
    try:
        loader.check_node()
        if not loader.check_node():
            raise YamlError("the file is empty")
        root = loader.get_node()
        if root is None or (isinstance(root, yaml.ScalarNode) and root.value == "" and root.style is None):
            raise YamlError("the file is empty")
        lines: dict[FieldPath, int] = {}
        written: dict[FieldPath, str] = {}
        for count, (path, line, node) in enumerate(_walk(root)):
            if path not in lines:
                lines[path] = line
                if node.tag in _NOT_TEXT:
                    written[path] = node.value
            if count >= NODE_LIMIT:
                raise YamlError(f"its aliases expand to more than {NODE_LIMIT} values", line)
        value = loader.construct_document(root)
    finally:
        loader.dispose()
    document = Document(value, lines, written)
    _only_json(value, document, ())
    return document


def _walk(root: yaml.Node) -> Iterator[tuple[FieldPath, int, yaml.Node]]:
    """Yield every field with its line and node, aliases expanded; the fields of a mapping before those merged into it.

    Rejects tags, keys that are not text, and duplicate keys.
    """
    stack: list[tuple[yaml.Node, FieldPath, tuple[int, ...], int]] = [(root, (), (), root.start_mark.line + 1)]
    while stack:
        node, path, around, line = stack.pop()
        yield path, line, node
        if node.tag not in _PLAIN_TAGS:
            raise YamlError(f"the tag {_short(node.tag)} is not allowed; write plain values", line)
        if id(node) in around:
            raise YamlError("an alias contains itself; remove it", line)
        inside = (*around, id(node))
        if isinstance(node, yaml.SequenceNode):
            stack += [(item, (*path, i), inside, item.start_mark.line + 1) for i, item in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            seen: dict[str, int] = {}
            bottom = len(stack)
            for key, item in node.value:
                at = key.start_mark.line + 1
                if key.tag == "tag:yaml.org,2002:merge":
                    stack.insert(bottom, (item, path, inside, at))
                    continue
                if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                    shown = _short(key.value) if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                    raise YamlError(f"a key must be text, not {shown}; put it in quotes", at)
                if key.value in seen:
                    first = seen[key.value]
                    raise YamlError(
                        f"{_short(key.value)} is defined twice, first on line {first}; keep one of them", at
                    )
                seen[key.value] = at
                stack.append((item, (*path, key.value), inside, at))


def _only_json(value: Any, document: Document, path: FieldPath) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _only_json(key, document, (*path, key))
            _only_json(item, document, (*path, key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _only_json(item, document, (*path, i))
    elif isinstance(value, float) and not math.isfinite(value):
        raise YamlError("infinity and NaN are not allowed; use a finite number", document.line_of(path))
    elif isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise YamlError("half of a surrogate pair is not allowed in text; remove it", document.line_of(path))


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    if (size := len(node.value)) > NUMBER_LIMIT:
        raise YamlError(
            f"a number of {size} characters is too long; use at most {NUMBER_LIMIT}", node.start_mark.line + 1
        )
    return int(loader.construct_yaml_int(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def _readable(error: yaml.MarkedYAMLError) -> YamlError:
    mark = error.problem_mark or error.context_mark
    line = None if mark is None else mark.line + 1
    problem = error.problem or str(error)
    if "'\\t'" in problem:
        return YamlError("tabs are not allowed; indent with spaces", line)
    if problem == "mapping values are not allowed here":
        return YamlError("unexpected ':'; check the indentation, and quote text that contains ': '", line)
    if problem.startswith("found undefined alias"):
        return YamlError(f"{problem.removeprefix('found ')}; define its anchor before it", line)
    return YamlError(problem, line)


def _code(character: Any) -> int:
    return ord(character) if isinstance(character, str) else int(character)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
