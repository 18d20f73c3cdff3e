"""The last observed state of the cluster, as small values. Versions only increase; a deleted object stays deleted.

Watch events, lists and responses to the operator's own writes arrive here in any order and more than once. The resource
version decides which one is newer. So a pass always sees the writes of the pass before it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from hftitan_operator.core.state import PodView
from hftitan_operator.kube import views
from hftitan_operator.kube.api import Json
from hftitan_operator.kube.reflector import number

Key = tuple[str, str]
"""Namespace and name of a job."""

PARTIAL = "PartialObjectMetadata"
REMEMBERED_DELETIONS = 20_000
"""Deleted UIDs to remember: an older list or a late response must not restore the object."""


class Record(Protocol):
    @property
    def key(self) -> Key:
        """Namespace and name of the job."""


R = TypeVar("R", bound=Record)


class Store(Generic[R]):
    """Records by UID, grouped by job. Calls `changed` with each record that is new, different or removed.

    Calls `deleted` before that with the last state of an object, if the watch reports its deletion.
    """

    def __init__(
        self,
        project: Callable[[Json], R | None],
        changed: Callable[[R], None],
        deleted: Callable[[R], None] | None = None,
    ) -> None:
        self._project, self._changed, self._last_state = project, changed, deleted
        self._records: dict[str, tuple[int, R]] = {}
        self._groups: dict[Key, dict[str, R]] = {}
        self._deleted: OrderedDict[str, None] = OrderedDict()
        self._partial: set[str] = set()
        """Objects of which only the metadata is known: a response to the operator's own creation."""

    def __len__(self) -> int:
        return len(self._records)

    def group(self, key: Key) -> Collection[R]:
        """Return the records of one job."""
        return self._groups.get(key, {}).values()

    def all(self) -> list[R]:
        return [record for _, record in self._records.values()]

    def job_keys(self) -> list[Key]:
        return list(self._groups)

    def version(self, uid: str) -> int:
        known = self._records.get(uid)
        return known[0] if known else 0

    def put(self, obj: Json) -> None:
        uid, version = obj["metadata"]["uid"], number(obj["metadata"].get("resourceVersion"))
        known, partial = self._records.get(uid), obj.get("kind") == PARTIAL
        completes = known is not None and version == known[0] and uid in self._partial and not partial
        if uid in self._deleted or (known is not None and version <= known[0] and version and not completes):
            return
        record = self._project(obj)
        if record is None:
            return
        (self._partial.add if partial else self._partial.discard)(uid)
        self._records[uid] = (version, record)
        self._groups.setdefault(record.key, {})[uid] = record
        if known is None or known[1] != record:
            self._changed(record)

    def remove(self, obj: Json) -> None:
        if self._last_state is not None and (record := self._project(obj)) is not None:
            self._last_state(record)
        self.forget(obj["metadata"]["uid"])

    def forget(self, uid: str) -> None:
        """Remove the record with this UID permanently."""
        self._deleted[uid] = None
        while len(self._deleted) > REMEMBERED_DELETIONS:
            self._deleted.popitem(last=False)
        self._partial.discard(uid)
        known = self._records.pop(uid, None)
        if known is None:
            return
        record = known[1]
        group = self._groups[record.key]
        del group[uid]
        if not group:
            del self._groups[record.key]
        self._changed(record)

    def keep(self, uids: set[str], version: int, namespace: str | None) -> None:
        gone = [
            uid
            for uid, (known, record) in self._records.items()
            if uid not in uids and known <= version and namespace in (None, record.key[0])
        ]
        for uid in gone:
            self.forget(uid)


# --- records ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JobRecord:
    key: Key
    view: views.JobView


@dataclass(frozen=True, slots=True)
class PodRecord:
    key: Key
    owner: str | None
    """UID of the job that owns the pod."""
    view: PodView


@dataclass(frozen=True, slots=True)
class ObjectRecord:
    """The existence and the owner of a Service or ConfigMap."""

    key: Key
    name: str
    owner: str | None


@dataclass(frozen=True, slots=True)
class NodeRecord:
    key: Key
    """An empty namespace and the node's name; a node belongs to no job."""
    ready: bool


def job_record(obj: Json) -> JobRecord:
    metadata = obj["metadata"]
    return JobRecord((metadata["namespace"], metadata["name"]), views.job_view(obj))


def pod_record(obj: Json) -> PodRecord | None:
    job, view = views.job_name(obj), views.pod_view(obj)
    if job is None or view is None:
        return None
    return PodRecord((obj["metadata"]["namespace"], job), views.owner_uid(obj), view)


def object_record(obj: Json) -> ObjectRecord | None:
    job = views.job_name(obj)
    if job is None:
        return None
    return ObjectRecord((obj["metadata"]["namespace"], job), obj["metadata"]["name"], views.owner_uid(obj))


def node_record(obj: Json) -> NodeRecord:
    return NodeRecord(("", obj["metadata"]["name"]), views.node_ready(obj))
