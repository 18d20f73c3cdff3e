"""A reverse proxy between an operator and the API server that injects the faults of a test's script.

    with FaultProxy(plane, folder) as proxy:
        proxy.script = lambda call: answer(500) if call.is_write and call.resource == "pods" else None

It serves plain HTTP on loopback to the operator (`proxy.kubeconfig`) and uses TLS to the API server. Tokens are
forwarded. The proxy and the scripts run in a separate thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import aiohttp
import yaml
from aiohttp import web
from control_plane import ControlPlane
from yarl import URL

LATE_SECONDS = 0.5
"""Delay before a watch event with the fault "late" is sent a second time, between newer events."""
POLL_SECONDS = 0.02
PASSED_ON = ("Authorization", "Accept", "Accept-Encoding", "Content-Type")
PASSED_BACK = ("Content-Type", "Content-Encoding", "Retry-After")
REASONS = {
    409: "Conflict", 410: "Expired", 422: "Invalid", 429: "TooManyRequests", 500: "InternalError",
    503: "ServiceUnavailable",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Call:
    """A request of the operator. `namespace` is empty for cluster-wide requests."""

    at: float
    method: str
    path: str
    """Including the query."""
    namespace: str
    resource: str
    name: str
    subresource: str
    body: bytes

    @classmethod
    def of(cls, method: str, path: str, body: bytes) -> Call:
        _, root, *parts = path.partition("?")[0].split("/")
        parts = parts[1:] if root == "api" else parts[2:]
        namespace = ""
        if len(parts) > 2 and parts[0] == "namespaces":
            namespace, parts = parts[1], parts[2:]
        resource, name, subresource = [*parts, "", "", ""][:3]
        return cls(time.monotonic(), method, path, namespace, resource, name, subresource, body)

    @property
    def is_watch(self) -> bool:
        return self.method == "GET" and "watch=" in self.path

    @property
    def is_list(self) -> bool:
        """Whether it reads all objects of a kind, also as the beginning of a watch."""
        return self.method == "GET" and not self.name and ("sendInitialEvents=" in self.path or not self.is_watch)

    @property
    def is_lease(self) -> bool:
        return self.resource == "leases"

    @property
    def is_event(self) -> bool:
        """Whether it is about Events."""
        return self.resource == "events"

    @property
    def is_write(self) -> bool:
        """Whether it writes anything except the operator's Lease."""
        return self.method != "GET" and not self.is_lease

    def __str__(self) -> str:
        return f"{self.method} {self.path.partition('?')[0]}{' (watch)' if self.is_watch else ''}"


@dataclass(frozen=True, slots=True)
class Fault:
    kind: Literal["kill", "answer", "hang", "reset"]
    forward: bool = False
    """The API server gets the request, but its answer is dropped."""
    status: int = 0
    retry_after: int | None = None
    victim: Callable[[], None] | None = None

    def __str__(self) -> str:
        what = str(self.status) if self.kind == "answer" else self.kind
        later = " with Retry-After" if self.retry_after is not None else ""
        return f"{what}{later}{' after forwarding' if self.forward else ''}"


def kill(victim: Callable[[], None], *, forward: bool) -> Fault:
    """Kill the operator by calling `victim()`."""
    return Fault("kill", forward, victim=victim)


def answer(status: int, *, forward: bool = False, retry_after: int | None = None) -> Fault:
    return Fault("answer", forward, status, retry_after)


def refuse_streamed_lists(call: Call) -> Fault | None:
    """A script: the API server does not stream lists, as before Kubernetes 1.34."""
    return answer(422) if "sendInitialEvents=" in call.path else None


def hang(*, forward: bool = False) -> Fault:
    """Do not answer until the client gives up."""
    return Fault("hang", forward)


def reset(*, forward: bool = False) -> Fault:
    return Fault("reset", forward)


Script = Callable[[Call], Fault | None]
StreamFault = Literal["duplicate", "late", "cut", "stall", "ERROR 410", "ERROR 500"]
"""At one watch event: send it twice; send it again later; cut the connection; send nothing more on it; send an ERROR.

No fault loses an event and continues the watch: API servers do not do that.
"""
StreamScript = Callable[[Call], StreamFault | None]


@dataclass(slots=True)
class Injected:
    kind: str
    method: str
    path: str
    at: float
    until: float
    """Later than `at` if the fault has a duration."""


@dataclass
class FaultProxy:
    plane: ControlPlane
    folder: Path
    user: str = "admin"
    script: Script = lambda call: None
    stream_script: StreamScript = lambda call: None
    """Called for every watch event; for the events of a list only once."""
    bookmark_seconds: float | None = None
    """Interval of additional bookmarks in every watch. The API server sends one a minute."""
    calls: list[Call] = field(default_factory=list)
    """All requests."""
    faults: list[Injected] = field(default_factory=list)
    writes: list[Call] = field(default_factory=list)
    """Writes that the API server received."""
    port: int = 0
    hanging: int = 0
    """Number of requests that are hanging now."""
    _open: set[asyncio.Transport] = field(default_factory=set)

    def __enter__(self) -> FaultProxy:
        started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(started,), name="fault proxy", daemon=True)
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    @property
    def kubeconfig(self) -> Path:
        """The control plane's kubeconfig, with the proxy's address."""
        config = yaml.safe_load(self.plane.kubeconfig(self.user).read_text())
        config["clusters"][0]["cluster"] = {"server": f"http://127.0.0.1:{self.port}"}
        path = self.folder / f"proxy-{self.port}.kubeconfig"
        path.write_text(yaml.safe_dump(config))
        path.chmod(0o600)
        return path

    def quiet(self) -> None:
        """Inject no more faults. Running ones end by themselves."""
        self.script = self.stream_script = lambda call: None

    def cut_off(self) -> None:
        """Reset all requests from now on, and all open connections."""
        self.script = lambda call: reset()
        self.cut_connections()

    def cut_connections(self) -> None:
        """Reset all open connections."""
        self._loop.call_soon_threadsafe(lambda: [transport.abort() for transport in list(self._open)])

    # --- the thread -----------------------------------------------------------------------------------------

    def _run(self, started: threading.Event) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve(started))

    async def _serve(self, started: threading.Event) -> None:
        self._ended = asyncio.Event()
        tls = ssl.create_default_context(cafile=self.plane.ca)
        connector = aiohttp.TCPConnector(ssl=tls, limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as self._upstream:
            handler = web.Server(self._handle, access_log=None)
            server = await self._loop.create_server(handler, "127.0.0.1", self.port)
            self.port = server.sockets[0].getsockname()[1]
            started.set()
            await self._ended.wait()
            server.close()
            await handler.shutdown(0.1)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        self._open.add(request.transport)
        call = Call.of(request.method, request.raw_path, await request.read())
        self.calls.append(call)
        fault = self.script(call)
        if fault is None:
            return await self._forward(request, call)
        noted = self._note(str(fault), call)
        if fault.forward:
            await self._forward(request, call, answer=False)
        if fault.victim is not None:
            fault.victim()
        if fault.kind == "hang":
            self.hanging += 1
            while request.transport is not None and not request.transport.is_closing():
                await asyncio.sleep(POLL_SECONDS)
            self.hanging -= 1
            noted.until = time.monotonic()
        if fault.kind != "answer":
            return self._gone(request)
        body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": fault.status}
        body |= {"reason": REASONS[fault.status], "message": "injected by the fault proxy"}
        headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
        return web.json_response(body, status=fault.status, headers=headers)

    def _note(self, kind: str, call: Call) -> Injected:
        now = time.monotonic()
        self.faults.append(Injected(kind, call.method, call.path, now, now))
        return self.faults[-1]

    def _gone(self, request: web.BaseRequest) -> web.Response:
        """Abort the connection; the returned response is not sent."""
        if request.transport is not None:
            self._open.discard(request.transport)
            request.transport.abort()
        return web.Response()

    async def _forward(self, request: web.BaseRequest, call: Call, *, answer: bool = True) -> web.StreamResponse:
        headers = {name: request.headers[name] for name in PASSED_ON if name in request.headers}
        url = URL(self.plane.url + call.path, encoded=True)
        if call.is_write:
            self.writes.append(call)
        try:
            async with self._upstream.request(call.method, url, data=call.body or None, headers=headers) as got:
                if call.is_watch and got.status == 200 and answer:
                    return await self._stream(request, call, got)
                kept = {name: got.headers[name] for name in PASSED_BACK if name in got.headers}
                return web.Response(status=got.status, body=await got.read(), headers=kept)
        except (aiohttp.ClientError, OSError):  # one side closed the connection, so close the other
            return self._gone(request)

    # --- watches --------------------------------------------------------------------------------------------

    async def _stream(self, request: web.BaseRequest, call: Call, source: aiohttp.ClientResponse) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        watch = _Watch(response, URL(call.path, encoded=True).query.get("resourceVersion", ""))
        if self.bookmark_seconds is not None:
            watch.start(watch.bookmarks(self.bookmark_seconds))
        asked = False
        try:
            async for line in _lines(source.content):
                is_bookmark = b'"BOOKMARK"' in line[:40]
                spared = is_bookmark or (asked and not watch.position)
                fault, asked = None if spared else self.stream_script(call), True
                noted = None if fault is None else self._note(f"watch: {fault}", call)
                if fault == "cut":
                    return self._gone(request)
                if fault == "stall" and noted is not None:
                    watch.end()
                    while request.transport is not None and not request.transport.is_closing():
                        await asyncio.sleep(POLL_SECONDS)
                    noted.until = time.monotonic()
                    break
                if fault in ("ERROR 410", "ERROR 500"):
                    await response.write(_error_event(int(fault[-3:])))
                    break
                for _ in range(2 if fault == "duplicate" else 1):
                    await response.write(line)
                if watch.position or is_bookmark:  # else the event is part of a list, which has no order
                    watch.position = json.loads(line)["object"]["metadata"]["resourceVersion"]
                if fault == "late":
                    watch.start(watch.later(line))
        finally:
            watch.end()
        return response


@dataclass
class _Watch:
    """What is sent on a watch beside the events of the API server."""

    response: web.StreamResponse
    position: str
    """The resource version of the last event; empty in a list."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def start(self, task: Coroutine[Any, Any, None]) -> None:
        self._tasks.add(asyncio.create_task(task))

    def end(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def bookmarks(self, seconds: float) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                await asyncio.sleep(seconds)
                if self.position:
                    event = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": self.position}}}
                    await self.response.write(json.dumps(event).encode() + b"\n")

    async def later(self, line: bytes) -> None:
        await asyncio.sleep(LATE_SECONDS)
        with contextlib.suppress(ConnectionError):
            await self.response.write(line)


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Yield lines of any length, with their line end."""
    rest = b""
    async for chunk in content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line + b"\n"


def _error_event(code: int) -> bytes:
    body: dict[str, Any] = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    body |= {"code": code, "reason": REASONS[code], "message": "injected by the fault proxy"}
    return json.dumps({"type": "ERROR", "object": body}).encode() + b"\n"


def tally(faults: Iterable[Injected]) -> str:
    """Return the number of faults by kind."""
    counts = Counter(fault.kind for fault in faults)
    return f"{counts.total()} faults: " + ", ".join(f"{kind} {count}" for kind, count in counts.most_common())
