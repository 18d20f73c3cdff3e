"""A hostile job: the document, what must stop it, and the expected message."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

SERVER, OPERATOR, NOBODY, STATUS = "server", "operator", "nobody", "status"


@dataclass(frozen=True)
class Hostile:
    id: str
    document: Any
    """The object, or its text (see `carrier`)."""
    stopped: str
    """What stops it. server: the API server rejects it, and so does the operator if an older schema let it through.
    operator: the server stores it, and the job fails without pods. nobody: it is unusual but harmless, and its pods
    conform to Pod Security `restricted`. status: it has a forged status, which takes effect only through /status."""
    says: str = ""
    """Part of the message in the job's status, or, for text, of the message of `hftitan validate`."""
    needs: tuple[str, ...] = ()
    """What the server needs to stop it: `cel` (1.25 and later), `strict` (fieldValidation=Strict, as kubectl requests;
    otherwise the unknown field is pruned). Without it the operator stops the job, or the job is harmless."""
    carrier: str = "json"
    """json: can be posted. yaml: `document` is the text of a file. python: has a value that JSON cannot express."""


_SPEC: dict[str, Any] = {
    "model": {"name": "org/model"},
    "dataset": {"name": "org/data"},
    "mesh": {"device": "cpu"},
    "training": {"steps": 10, "seqLen": 64},
    "checkpoint": {"volume": "claim"},
}


def job(name: Any = "hostile", *, metadata: Any = None, status: Any = None, **spec: Any) -> dict[str, Any]:
    """Return a harmless job with sections of the spec merged in. A section that is not a mapping replaces it."""
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
    """Return a harmless job with whole top-level fields replaced."""
    return {**job(), **top}


def nested(depth: int, leaf: Any = 1) -> Any:
    value = leaf
    for _ in range(depth):
        value = {"a": value}
    return value
