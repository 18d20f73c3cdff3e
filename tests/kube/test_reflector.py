"""Lists are streamed or paged; a watch resumes at its position unless the server has forgotten it."""

import asyncio
import contextlib

import pytest

from hftitan_operator.kube import reflector as module
from hftitan_operator.kube.api import ApiError, WatchError
from hftitan_operator.kube.reflector import INITIAL_END, Reflector, Timing

SILENT = object()
"""An entry of a stream: the server sends nothing more and keeps the connection."""
SLOW = Timing(check=(60, 60), silence=60)
STREAMED = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}


def thing(name, version):
    return {"metadata": {"uid": name, "resourceVersion": str(version)}}


def added(name, version):
    return {"type": "ADDED", "object": thing(name, version)}


def deleted(name, version):
    return {"type": "DELETED", "object": thing(name, version)}


def bookmark(version, *, end=False):
    annotations = {"annotations": {INITIAL_END: "true"}} if end else {}
    return {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(version), **annotations}}}


LIST = [added("a", 5), bookmark(7, end=True)]


class Server:
    """Answers each watch with the next stream and each list with the next page. An exception is raised.

    `done` is set when a watch finds no stream left.
    """

    def __init__(self, *streams, pages=()):
        self.streams, self.pages = list(streams), list(pages)
        self.watches, self.lists, self.done = [], [], asyncio.Event()

    async def request(self, method, path, *, params, accept, seconds):
        self.lists.append(dict(params))
        return self.pages.pop(0)

    async def watch(self, path, params, accept, *, silence):
        self.watches.append(dict(params))
        if not self.streams:
            self.done.set()
            await asyncio.Event().wait()
        for event in self.streams.pop(0):
            if event is SILENT:
                await asyncio.Event().wait()
            if isinstance(event, Exception):
                raise event
            yield event

    @property
    def positions(self):
        """The resource version of each watch; "list" for a watch that begins with a list."""
        return [params.get("resourceVersion", "list") for params in self.watches]


class Things:
    def __init__(self, **versions):
        self.versions = versions

    def put(self, obj):
        self.versions[obj["metadata"]["uid"]] = int(obj["metadata"]["resourceVersion"])

    def remove(self, obj):
        self.versions.pop(obj["metadata"]["uid"], None)

    def keep(self, uids, version, namespace):
        self.versions = {uid: known for uid, known in self.versions.items() if uid in uids or known > version}


@pytest.fixture
def failures(monkeypatch):
    """The number of failures in a row at each pause; the pauses have no length."""
    seen = []
    monkeypatch.setattr(module, "pause", lambda error, count: seen.append(count) or 0)
    return seen


def follow(server, store=None, timing=SLOW, **options):
    """Run a reflector until the server has no streams left."""
    store = store or Things()

    async def run():
        reflector = Reflector(server, "/things", store, timing=timing, **options)
        task = asyncio.create_task(reflector.run())
        async with asyncio.timeout(20):
            await server.done.wait()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return reflector

    return asyncio.run(run())


def test_list_and_watch_are_one_request():
    versions = []
    server, store = Server([*LIST, added("b", 8), deleted("a", 9), bookmark(20)]), Things()
    follow(server, store, selector="ours", reached=versions.append)
    assert store.versions == {"b": 8}
    assert versions == [7, 8, 9, 20]
    assert server.lists == []
    first, second = server.watches
    common = {"labelSelector": "ours", "allowWatchBookmarks": "true", "timeoutSeconds": "60"}
    assert first == common | STREAMED
    assert second == common | {"resourceVersion": "20"}


def test_list_removes_what_it_lacks_unless_newer():
    server, store = Server(LIST), Things(gone=3, newer=9)
    follow(server, store)
    assert store.versions == {"a": 5, "newer": 9}


@pytest.mark.parametrize("answer", [ApiError(400, "BadRequest", ""), ApiError(422, "Invalid", ""), bookmark(6), SILENT])
def test_server_without_streamed_lists_is_listed_in_pages(answer, failures):
    pages = [
        {"metadata": {"resourceVersion": "7", "continue": "more"}, "items": [thing("a", 5)]},
        {"metadata": {"resourceVersion": "7"}, "items": [thing("b", 6)]},
    ]
    server, store = Server([answer], pages=pages), Things(gone=3)
    follow(server, store, Timing(check=(60, 60), silence=0.1))
    assert store.versions == {"a": 5, "b": 6}
    assert server.lists == [{"limit": "500"}, {"limit": "500", "continue": "more"}]
    assert server.positions == ["list", "7"]
    assert failures == []


def test_refused_stream_is_not_requested_again():
    page = {"metadata": {"resourceVersion": "7"}, "items": []}
    server = Server([ApiError(422, "Invalid", "")], [ApiError(410, "Expired", "")], pages=[page, page])
    follow(server)
    assert server.positions == ["list", "7", "7"]
    assert len(server.lists) == 2


@pytest.mark.parametrize(
    "end", [OSError("reset"), TimeoutError("no response"), *(ApiError(code, "", "") for code in (401, 429, 500, 503))]
)
def test_broken_watch_resumes_at_its_position(end):
    server = Server([*LIST, added("b", 8), bookmark(9), end], [end], [added("c", 11)])
    follow(server)
    assert server.positions == ["list", "9", "9", "11"]


@pytest.mark.parametrize(
    "end",
    [ApiError(410, "Expired", ""), ApiError(404, "NotFound", ""), WatchError(410, "", ""), WatchError(500, "", "")],
)
def test_watch_that_lost_its_position_is_listed_again(end):
    server, store = Server([*LIST, end], [added("b", 12), bookmark(13, end=True)]), Things()
    follow(server, store)
    assert server.positions == ["list", "list", "13"]
    assert store.versions == {"b": 12}


def test_list_that_breaks_begins_again():
    server, store = Server([added("a", 5), OSError("reset")], [added("a", 5)], LIST), Things(other=3)
    follow(server, store)
    assert server.positions == ["list", "list", "list", "7"]
    assert store.versions == {"a": 5}


def test_event_that_is_repeated_does_not_move_the_position_back():
    server = Server([*LIST, added("b", 12), added("c", 9)])
    follow(server)
    assert server.positions == ["list", "12"]


def test_stalled_watch_resumes_and_waits_longer_while_the_server_is_silent(failures):
    timing = Timing(check=(60, 60), silence=0.02)
    server = Server([*LIST, SILENT], [SILENT], [bookmark(9)])
    limits = []

    class Watched(Reflector):
        async def _changes(self, events):
            limits.append(self._silence)
            await super()._changes(events)

    async def run():
        task = asyncio.create_task(Watched(server, "/things", Things(), timing=timing).run())
        await asyncio.wait_for(server.done.wait(), 20)
        task.cancel()

    asyncio.run(run())
    assert server.positions == ["list", "7", "7", "9"]
    assert limits == [0.02, 0.04, 0.08, 0.02], "a bookmark shows that the server sends them"


def test_store_is_checked_with_a_new_list_when_it_is_due():
    """The server ends each watch after timeoutSeconds."""
    server, store = Server(LIST, [bookmark(9, end=True)], [bookmark(11, end=True)]), Things()
    follow(server, store, Timing(check=(0, 0), silence=60))
    assert server.positions == ["list"] * 4
    assert {params["timeoutSeconds"] for params in server.watches} == {"1"}
    assert store.versions == {}


def test_kind_that_other_code_watches_is_listed_on_request():
    async def run():
        server, store = Server(LIST, [bookmark(9, end=True), SILENT]), Things()
        jobs = Reflector(server, "/things", store, watched=False, timing=SLOW)
        task = asyncio.create_task(jobs.run())
        await jobs.synced.wait()
        assert store.versions == {"a": 5}
        jobs.list_soon()
        async with asyncio.timeout(20):
            while store.versions:
                await asyncio.sleep(0)
        assert server.positions == ["list", "list"]
        task.cancel()

    asyncio.run(run())


def test_watches_that_end_at_once_are_failures(failures):
    server = Server(LIST, [], [], [])
    follow(server)
    assert failures == [1, 2, 3]


def test_kind_without_permission_stays_empty_if_it_is_optional():
    async def run():
        nodes = Reflector(Server([ApiError(403, "Forbidden", "no")]), "/nodes", Things(), optional=True)
        await asyncio.wait_for(nodes.run(), 20)
        return nodes.denied, nodes.synced.is_set()

    assert asyncio.run(run()) == (True, True)
