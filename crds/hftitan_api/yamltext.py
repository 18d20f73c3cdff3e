"""Parses one YAML document into plain JSON values with the line of every field. Safe on untrusted text.

The text is read as `kubectl` reads it (`5e-5` is a number, a date is text, anchors and merges work), and what a job
never needs is refused: several documents, a key given twice, tags, aliases that unfold into more than a job can hold.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

SIZE_LIMIT = 1024 * 1024
"""Bytes of a document; etcd takes 1.5 MiB in all."""
NODE_LIMIT = 20_000
"""Values of a document, aliases unfolded."""
DEPTH_LIMIT = 64

FieldPath = tuple[str | int, ...]


class YamlError(ValueError):
    """The text is no usable YAML document; `line` counts from 1."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message if line is None else f"line {line}: {message}")
        self.message = message
        self.line = line


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed document."""

    value: Any
    lines: dict[FieldPath, int] = field(default_factory=dict)
    """Line of each field, counted from 1, by its path: `("spec", "pod", "env", 2)`."""

    def line_of(self, path: FieldPath) -> int | None:
        """Line of the field, or of the nearest field around it that is there."""
        while path:
            if path in self.lines:
                return self.lines[path]
            path = path[:-1]
        return None


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of Kubernetes' own reader: no sexagesimal numbers, no dates, `5e-5` a float."""


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


def parse(text: str | bytes) -> Document:
    """The one document of the text. Raises YamlError, and nothing else, whatever the text is."""
    if len(text) > SIZE_LIMIT:
        raise YamlError(f"{len(text)} bytes are more than a job may have ({SIZE_LIMIT})")
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text.removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise YamlError(f"byte {error.start} is not UTF-8") from None
    try:
        _check_events(decoded)
        return _construct(decoded)
    except yaml.MarkedYAMLError as error:
        raise _in_words(error) from None
    except yaml.reader.ReaderError as error:
        line = decoded.count("\n", 0, error.position) + 1
        raise YamlError(f"the character U+{_code(error.character):04X} may not stand in YAML", line) from None
    except yaml.YAMLError as error:
        raise YamlError(str(error)) from None
    except YamlError:
        raise
    except ValueError as error:  # an explicit tag on text that is nothing of the kind: `!!int ten`
        raise YamlError(f"a value that its tag does not fit: {error}") from None


def _check_events(text: str) -> None:
    """Refuse by the stream of events, which needs no recursion, what the tree must not be built from."""
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
        for count, (path, line) in enumerate(_walk(root)):
            lines.setdefault(path, line)
            if count >= NODE_LIMIT:
                raise YamlError(f"its aliases unfold into more than {NODE_LIMIT} values", line)
        value = loader.construct_document(root)
    finally:
        loader.dispose()
    _only_json(value, Document(value, lines), ())
    return Document(value, lines)


def _walk(root: yaml.Node) -> Iterator[tuple[FieldPath, int]]:
    """Every field with its line, aliases unfolded; refuses tags, keys that are no text, and keys given twice."""
    stack: list[tuple[yaml.Node, FieldPath, tuple[int, ...], int]] = [(root, (), (), root.start_mark.line + 1)]
    while stack:
        node, path, around, line = stack.pop()
        yield path, line
        if node.tag not in _PLAIN_TAGS:
            raise YamlError(f"the tag {_short(node.tag)} is not allowed; write plain values", line)
        if id(node) in around:
            raise YamlError("an alias that contains itself", line)
        inside = (*around, id(node))
        if isinstance(node, yaml.SequenceNode):
            stack += [(item, (*path, i), inside, item.start_mark.line + 1) for i, item in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            seen: dict[str, int] = {}
            for key, item in node.value:
                at = key.start_mark.line + 1
                if key.tag == "tag:yaml.org,2002:merge":
                    stack.append((item, path, inside, at))
                    continue
                if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                    shown = _short(key.value) if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                    raise YamlError(f"the key {shown} is no text; put it in quotes", at)
                if key.value in seen:
                    raise YamlError(f"{_short(key.value)} is given twice, first on line {seen[key.value]}", at)
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
        raise YamlError("infinite and NaN are no values of a job", document.line_of(path))
    elif isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise YamlError("half of a surrogate pair is no text", document.line_of(path))


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    if len(node.value) > 40:
        raise YamlError(f"a number of {len(node.value)} characters", node.start_mark.line + 1)
    return int(loader.construct_yaml_int(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def _in_words(error: yaml.MarkedYAMLError) -> YamlError:
    mark = error.problem_mark or error.context_mark
    line = None if mark is None else mark.line + 1
    problem = error.problem or str(error)
    if "'\\t'" in problem:
        return YamlError("a tab; YAML is indented with spaces", line)
    if problem == "mapping values are not allowed here":
        return YamlError("a ':' where none can be; check the indentation, and quote text that holds ': '", line)
    if problem.startswith("found undefined alias"):
        return YamlError(f"{problem.removeprefix('found ')}; no anchor of this name comes before it", line)
    return YamlError(problem, line)


def _code(character: Any) -> int:
    return ord(character) if isinstance(character, str) else int(character)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
