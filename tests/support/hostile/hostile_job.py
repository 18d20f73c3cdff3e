"""One hostile job: the document, who stops it, and what its author is told."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

SERVER, OPERATOR, NOBODY, STATUS = "server", "operator", "nobody", "status"


@dataclass(frozen=True)
class Hostile:
    id: str
    document: Any
    """The whole object, or the text of one (see `carrier`)."""
    stopped: str
    """server: the API server refuses it (and the operator, should one be stored that is older than the schema).
    operator: the server stores it; the job ends as Failed, without pods. nobody: odd, but harmless: it gets pods, of
    Pod Security `restricted`. status: its status is a lie, which a server drops at creation; only written to /status
    it counts."""
    says: str = ""
    """In the message that the user finds in the job's status (or of `hftitan validate`, for text)."""
    needs: tuple[str, ...] = ()
    """What stops it at the server: `cel` (1.25 and later), `strict` (fieldValidation=Strict, as kubectl asks for; else
    the unknown field is pruned). Without that the operator does, or the job is harmless."""
    carrier: str = "json"
    """json: can be posted. yaml: `document` is text for a reader of files. python: a value that JSON has not."""


_SPEC: dict[str, Any] = {
    "model": {"name": "org/model"},
    "dataset": {"name": "org/data"},
    "mesh": {"device": "cpu"},
    "training": {"steps": 10, "seqLen": 64},
    "checkpoint": {"volume": "claim"},
}


def job(name: Any = "hostile", *, metadata: Any = None, status: Any = None, **spec: Any) -> dict[str, Any]:
    """A harmless job with sections of its spec merged in; a section that is no mapping replaces what was there."""
    body = copy.deepcopy(_SPEC)
    for section, values in spec.items():
        both = isinstance(values, dict) and isinstance(body.get(section), dict)
        body[section] = {**body[section], **values} if both else values
    document = {
        "apiVersion": "hftitan.io/v1alpha1",
        "kind": "HFTitanJob",
        "metadata": {"name": name, **(metadata or {})},
        "spec": body,
    }
    return document if status is None else {**document, "status": status}


def changed(**top: Any) -> dict[str, Any]:
    """A harmless job with whole top-level fields replaced."""
    return {**job(), **top}


def nested(depth: int, leaf: Any = 1) -> Any:
    value = leaf
    for _ in range(depth):
        value = {"a": value}
    return value
