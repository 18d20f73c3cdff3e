"""The kubelet's HTTPS endpoint for logs, which the API server uses for `pods/log`: follow, tail, since, timestamps."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

from aiohttp import web

LOOK_SECONDS = 0.05


class Logged(Protocol):
    done: asyncio.Event

    @property
    def log(self) -> Path | None:
        """None before the container has started."""

    @property
    def started_at(self) -> float: ...


class LogServer:
    """`find(namespace, pod)` returns the pod or None. Serves with the API server's certificate."""

    def __init__(self, find: Callable[[str, str], Logged | None]) -> None:
        self._find = find

    async def start(self, certificate: Path) -> int:
        """Start the server and return its port."""
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate, certificate.with_suffix(".key"))
        app = web.Application()
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._logs)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        return int(runner.addresses[0][1])

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        pod, container = request.match_info["pod"], request.match_info["container"]
        found = self._find(request.match_info["namespace"], pod)
        if found is None:
            raise web.HTTPNotFound(text=f'pod "{pod}" not found')
        if found.log is None:
            words = f'container "{container}" in pod "{pod}" is waiting to start: ContainerCreating'
            raise web.HTTPBadRequest(text=words)
        query = request.query
        follow, stamped = query.get("follow") == "true", query.get("timestamps") == "true"
        answer = web.StreamResponse(headers={"Content-Type": "text/plain", "Transfer-Encoding": "chunked"})
        await answer.prepare(request)
        before = len(found.log.read_bytes().splitlines()) if "tailLines" in query else 0
        first = max(0, before - int(query["tailLines"])) if "tailLines" in query else 0
        async for number, line in _lines(found, follow=follow):
            when = _stamp(found.started_at, number)
            if number >= first and when[:19] >= query.get("sinceTime", "")[:19]:
                await answer.write(f"{when} ".encode() + line if stamped else line)
        return answer


async def _lines(pod: Logged, *, follow: bool) -> AsyncIterator[tuple[int, bytes]]:
    number, rest = 0, b""
    assert pod.log is not None
    with pod.log.open("rb") as file:
        while True:
            over = pod.done.is_set() or not follow  # checked first, so that everything written before is still read
            *lines, rest = (rest + file.read()).split(b"\n")
            for line in lines:
                yield number, line + b"\n"
                number += 1
            if over:
                if rest:
                    yield number, rest
                return
            await asyncio.sleep(LOOK_SECONDS)


def _stamp(started: float, number: int) -> str:
    """Return a timestamp that is always the same for a line; the file has none."""
    when = datetime.datetime.fromtimestamp(started, datetime.UTC) + datetime.timedelta(microseconds=number)
    return when.strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
