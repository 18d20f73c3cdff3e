"""Keeps a store equal to the API server's objects of one kind: list, watch, and list again.

A watch can lose events: connections break, and proxies or bugs drop events. The reflector therefore lists the kind
again at intervals, which are longer for long lists, and corrects differences.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Protocol

from hftitan_operator.kube.api import METADATA_LIST, METADATA_ONLY, ApiError, Json, KubeApi

log = logging.getLogger(__name__)

PAGE = 250
"""Objects per page: 250 pods are about 2 MB of text, and temporarily ten times that as Python values."""
RELIST_SECONDS = 3.0
"""Minimum pause between two lists: a lost watch event is corrected after about this time."""
RELIST_SECONDS_PER_OBJECT = 0.01
"""Reading an object takes about a fiftieth of this. The pause is not a multiple of the last list's duration: after one
slow list (busy machine, slow network) the next list would be minutes late."""
WATCH_SECONDS = (240, 300)
BACKOFF_SECONDS, BACKOFF_LIMIT_SECONDS = 0.1, 2.0


class Store(Protocol):
    """Receives objects. It must ignore an older version of a known object."""

    def __len__(self) -> int: ...

    def put(self, obj: Json) -> None: ...

    def remove(self, obj: Json) -> None: ...

    def keep(self, uids: set[str], version: int, namespace: str | None) -> None:
        """Drop objects that are missing in a complete list (of one namespace, or of all) as of `version`, except newer
        objects."""


class Reflector:
    """Lists and watches one kind, in one namespace or in all. `run()` runs until cancelled."""

    def __init__(
        self,
        api: KubeApi,
        path: str,
        store: Store,
        *,
        namespace: str | None = None,
        selector: str | None = None,
        metadata_only: bool = False,
        watched: bool = True,
        optional: bool = False,
        listed: Callable[[int], None] = lambda version: None,
        absent: str = "",
    ) -> None:
        """`watched` False: only list; other code watches. `optional`: without permission the store stays empty.

        `listed` is called with the resource version of every complete list after the store is updated. `absent` is the
        message with the fix if the server does not serve the kind.
        """
        self.synced = asyncio.Event()
        """Set when the first list is in the store."""
        self.denied = False
        self.waits_for = f"{path}: not listed yet"
        """Why it is not synced yet."""
        self._api, self._path, self._store, self._namespace = api, path, store, namespace
        self._params = {"labelSelector": selector} if selector else {}
        self._accept = (METADATA_LIST, METADATA_ONLY) if metadata_only else ("application/json", "application/json")
        self._watched, self._optional, self._listed, self._absent = watched, optional, listed, absent
        self._listing = asyncio.Lock()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._relist())
            if self._watched:
                tasks.create_task(self._watch())

    async def list_once(self) -> tuple[str, int]:
        """Update the store from a new list; return the list's resource version and its number of objects."""
        uids: set[str] = set()
        version = ""
        async with self._listing:
            async for items, of_page in self._pages():
                version = of_page
                for item in items:
                    uids.add(item["metadata"]["uid"])
                    self._store.put(item)
            self._store.keep(uids, number(version), self._namespace)
            self._listed(number(version))
        self.synced.set()
        return version, len(uids)

    async def _pages(self) -> AsyncIterator[tuple[Iterable[Json], str]]:
        params = {**self._params, "limit": str(PAGE)}
        while True:
            page = await self._api.request("GET", self._path, params=params, accept=self._accept[0], seconds=60)
            metadata = page.get("metadata", {})
            yield page.get("items") or (), metadata.get("resourceVersion", "")
            if not metadata.get("continue"):
                return
            params["continue"] = metadata["continue"]
            del page  # one page in memory at a time
            await asyncio.sleep(0)

    async def _relist(self) -> None:
        failures = 0
        if self._watched:
            await self.synced.wait()  # the watch starts with a list
            await self._rest(len(self._store), 0.0)
        while not self.denied:
            started = time.monotonic()
            try:
                _, count = await self.list_once()
            except OSError as error:
                failures += 1
                if self._not_permitted(error):
                    return
                self._report("list", error, failures)
                await asyncio.sleep(backoff(failures))
                continue
            failures = 0
            await self._rest(count, time.monotonic() - started)

    async def _rest(self, count: int, took: float) -> None:
        """Pause after a list of `count` objects. The pause grows with objects that arrive, so a burst is not listed."""
        began, known, share = time.monotonic(), len(self._store), random.uniform(0.9, 1.1)
        while True:
            total = count + max(0, len(self._store) - known)
            pause = max(RELIST_SECONDS, RELIST_SECONDS_PER_OBJECT * total, took) * share
            left = began + pause - time.monotonic()
            if left <= 0:
                return
            await asyncio.sleep(left)

    async def _watch(self) -> None:
        failures = 0
        version: str | None = None
        while not self.denied:
            try:
                if version is None:
                    version, _ = await self.list_once()
                async for event in self._api.watch(self._path, self._watch_params(version), self._accept[1]):
                    failures = 0
                    obj = event["object"]
                    version = obj["metadata"].get("resourceVersion", version)
                    if event["type"] == "DELETED":
                        self._store.remove(obj)
                    elif event["type"] in ("ADDED", "MODIFIED"):
                        self._store.put(obj)
                await asyncio.sleep(0.01)  # prevents a busy loop with a server that ends every watch at once
            except OSError as error:
                failures += 1
                if self._not_permitted(error):
                    return
                if isinstance(error, ApiError):
                    version = None  # usually 410 Gone; a new list recovers from any error
                self._report("watch", error, failures)
                await asyncio.sleep(backoff(failures))

    def _watch_params(self, version: str) -> dict[str, str]:
        seconds = str(random.randint(*WATCH_SECONDS))
        return {
            **self._params,
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": seconds,
        }

    def _report(self, doing: str, error: OSError, failures: int) -> None:
        unknown = self._absent and isinstance(error, ApiError) and error.status == 404
        what = self._absent if unknown else f"{error}; retrying"
        self.waits_for = f"{self._path}: {what}"
        log.log(level(failures), "%s %s: %s", doing, self._path, what)

    def _not_permitted(self, error: OSError) -> bool:
        if not (self._optional and isinstance(error, ApiError) and error.status == 403):
            return False
        if not self.denied:
            log.warning("%s: %s; continuing without it", self._path, error)
        self.denied = True
        self.synced.set()
        return True


def level(failures: int) -> int:
    """Return the log level for the last of `failures` in a row: warning for the 2nd, 4th, 8th, ..., else debug.

    Single failures are normal on a network.
    """
    return logging.WARNING if failures > 1 and failures & (failures - 1) == 0 else logging.DEBUG


def backoff(failures: int) -> float:
    """Return the seconds to wait after `failures` in a row: doubles up to two seconds, with jitter."""
    longest = min(BACKOFF_LIMIT_SECONDS, BACKOFF_SECONDS * 2.0 ** min(failures - 1, 10))
    return longest * random.uniform(0.5, 1.0)


def number(version: Any) -> int:
    """Return a resource version as a number. Kubernetes 1.35 documents their order; etcd's versions always had one."""
    try:
        return int(version)
    except (TypeError, ValueError):
        return 0
