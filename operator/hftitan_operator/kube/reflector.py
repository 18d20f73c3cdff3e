"""Keeps a store equal to the API server's objects of one kind: a list, then a watch.

List and watch are one request, a watch that begins with all objects (`sendInitialEvents`, Kubernetes 1.34). On a server
without it, the list comes in pages.

A watch reports every change. If it ends, breaks or stalls, the next one resumes at its last position. A new list is
needed only if the server no longer knows the position (410 Gone). Every few minutes a list checks the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from hftitan_operator.kube.api import METADATA_LIST, METADATA_ONLY, REQUEST_SECONDS, ApiError, Json, KubeApi, WatchError
from hftitan_operator.kube.retry import level, pause

log = logging.getLogger(__name__)

PAGE = 500
"""Objects per page: 500 pods are about 4 MB of text, and temporarily ten times that as Python values."""
INITIAL_END = "k8s.io/initial-events-end"
"""Annotation of the bookmark after the initial events."""
NOT_STREAMED = frozenset({400, 422})
"""Answers of a server that does not know `sendInitialEvents` or has disabled it."""
POSITION_LOST = frozenset({400, 404, 410, 422})
SHORT_SECONDS = 1.0
"""A watch that ends sooner and without an event counts as failed."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Intervals in seconds."""

    check: tuple[float, float] = (300.0, 600.0)
    """Time between two lists, drawn at random from this range. It is also the longest duration of a watch."""
    silence: float = 75.0
    """A watch without an event or bookmark for longer is stalled: the server sends a bookmark about once a minute."""


class Unstreamed(OSError):
    """The server ignores `sendInitialEvents`."""


class Store(Protocol):
    """Receives objects. It must ignore an older version of a known object."""

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
        reached: Callable[[int], None] = lambda version: None,
        absent: str = "",
        timing: Timing | None = None,
    ) -> None:
        """`watched` False: only list; other code watches. `optional`: without permission the store stays empty.

        `reached` is called with a resource version when the store has all changes up to it. `absent` is the message
        with the fix if the server does not serve the kind.
        """
        self.synced = asyncio.Event()
        """Set when the first list is in the store."""
        self.denied = False
        self.waits_for = f"{path}: not listed yet"
        """Why it is not synced yet."""
        self._api, self._path, self._store, self._namespace = api, path, store, namespace
        self._params = {"labelSelector": selector} if selector else {}
        self._accept = (METADATA_LIST, METADATA_ONLY) if metadata_only else ("application/json", "application/json")
        self._watched, self._optional, self._reached, self._absent = watched, optional, reached, absent
        self._timing = timing or Timing()
        self._streamed = True
        """False once the server has refused a streamed list."""
        self._position = ""
        """The resource version up to which the store has all changes; empty: a list is needed."""
        self._due = 0.0
        """When to list again."""
        self._asked = asyncio.Event()
        self._silence = self._timing.silence
        self._heard = False
        """Whether the last request delivered anything."""

    def list_soon(self) -> None:
        """List again now, because a watch elsewhere lost its position. Only if not `watched`."""
        self._asked.set()

    async def run(self) -> None:
        failures = 0
        while not self.denied:
            began, self._heard = time.monotonic(), False
            try:
                await self._turn()
                if not self._heard and time.monotonic() - began < SHORT_SECONDS:
                    raise OSError("the server ended the watch at once")
                failures = 0
            except OSError as error:
                failures = 1 if self._heard else failures + 1
                if self._not_permitted(error):
                    return
                if isinstance(error, WatchError) or (isinstance(error, ApiError) and error.status in POSITION_LOST):
                    self._position = ""
                self._report(error, failures)
                await asyncio.sleep(pause(error, failures))

    async def _turn(self) -> None:
        """List, watch, or both in one request."""
        if time.monotonic() >= self._due:
            self._position = ""
        if not self._position:
            self._due = time.monotonic() + random.uniform(*self._timing.check)
            self._asked.clear()
            await self._list()
        elif self._watched:
            await self._watch()
        if not self._watched:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._asked.wait(), self._due - time.monotonic())
            self._due = 0.0

    # --- lists ------------------------------------------------------------------------------------------------

    async def _list(self) -> None:
        """Update the store from a new list. If the server streams it, watch on the same connection afterwards."""
        if self._streamed:
            try:
                await self._watch()
                return
            except ApiError as error:
                if self._position or error.status not in NOT_STREAMED:
                    raise
                self._streamed = False
            except (Unstreamed, TimeoutError) as error:
                if self._position:
                    raise
                log.debug("%s: %s; listing it in pages", self._path, error)
        uids: set[str] = set()
        version = ""
        async for items, of_page in self._pages():
            version = of_page
            for item in items:
                uids.add(item["metadata"]["uid"])
                self._store.put(item)
        self._complete(uids, version)

    async def _pages(self) -> AsyncIterator[tuple[Iterable[Json], str]]:
        # Without a resource version: an answer from the cache (resourceVersion=0) ignores the limit.
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

    def _complete(self, uids: set[str], version: str) -> None:
        """Finish a list of the objects with these UIDs."""
        self._heard = True
        self._store.keep(uids, number(version), self._namespace)
        self._move(version)
        self.synced.set()

    # --- watches ----------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Watch from the position. Without a position, begin with a list."""
        seconds = max(1, math.ceil(self._due - time.monotonic()))
        params = {**self._params, "allowWatchBookmarks": "true", "timeoutSeconds": str(seconds)}
        if self._position:
            params["resourceVersion"] = self._position
        else:
            params |= {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
        events = self._api.watch(self._path, params, self._accept[1], silence=None)
        async with contextlib.aclosing(events):
            if not self._position:
                await self._initial(events)
            if self._watched:
                await self._changes(events)

    async def _initial(self, events: AsyncGenerator[Json, None]) -> None:
        """Read a streamed list up to its end."""
        uids: set[str] = set()
        while (event := await _next(events, min(REQUEST_SECONDS, self._timing.silence))) is not None:
            kind, obj = event["type"], event["object"]
            if kind != "BOOKMARK":
                uids.add(obj["metadata"]["uid"])
                self._put(kind, obj)
            elif (obj["metadata"].get("annotations") or {}).get(INITIAL_END) == "true":
                self._complete(uids, obj["metadata"]["resourceVersion"])
                return
            else:
                raise Unstreamed("the server does not stream lists")
        raise OSError("the server ended the list before it was complete")

    async def _changes(self, events: AsyncGenerator[Json, None]) -> None:
        try:
            while (event := await _next(events, self._silence)) is not None:
                self._heard, self._silence = True, self._timing.silence
                self._put(event["type"], event["object"])
                self._move(event["object"]["metadata"].get("resourceVersion", ""))
        except TimeoutError:
            # The server sends no bookmarks until an object of the kind changes. Wait longer the next time.
            self._silence = min(2 * self._silence, self._timing.check[1])
            raise

    def _put(self, kind: str, obj: Json) -> None:
        if kind == "DELETED":
            self._store.remove(obj)
        elif kind in ("ADDED", "MODIFIED"):
            self._store.put(obj)

    def _move(self, version: str) -> None:
        if number(version) >= number(self._position):
            self._position = version
            self._reached(number(version))

    # --- errors -----------------------------------------------------------------------------------------------

    def _report(self, error: OSError, failures: int) -> None:
        unknown = self._absent and isinstance(error, ApiError) and error.status == 404
        what = self._absent if unknown else f"{error}; retrying"
        self.waits_for = f"{self._path}: {what}"
        stalled = isinstance(error, TimeoutError) and self._position
        log.log(logging.INFO if stalled else level(failures), "%s: %s", self._path, what)

    def _not_permitted(self, error: OSError) -> bool:
        if not (self._optional and isinstance(error, ApiError) and error.status == 403):
            return False
        log.warning("%s: %s; continuing without it", self._path, error)
        self.denied = True
        self.synced.set()
        return True


async def _next(events: AsyncGenerator[Json, None], seconds: float) -> Json | None:
    """Return the next event, or None at the end. Raises TimeoutError if none arrives in time."""
    try:
        async with asyncio.timeout(seconds):
            return await anext(events, None)
    except TimeoutError as error:
        raise TimeoutError(str(error) or f"the watch was silent for {seconds:g} s") from None


def number(version: Any) -> int:
    """Return a resource version as a number. Kubernetes 1.35 documents their order; etcd's versions always had one."""
    try:
        return int(version)
    except (TypeError, ValueError):
        return 0
