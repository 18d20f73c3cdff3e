"""The process kubelet's API server client: JSON over aiohttp, retries in an outage, and list-and-watch."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import yaml

Object = dict[str, Any]
RETRY_SECONDS = 0.2
STRATEGIC, MERGE = "application/strategic-merge-patch+json", "application/merge-patch+json"


class Gone(Exception):
    """The object does not exist, or it is another object of the same name."""


class Api:
    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self._url = cluster["server"]
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        tls = ssl.create_default_context(cadata=authority)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls, limit=64),
            headers={"Authorization": f"Bearer {user['token']}", "Accept": "application/json"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
        )

    async def close(self) -> None:
        await self._session.close()

    async def call(self, method: str, path: str, body: Object | None = None, kind: str = "application/json") -> Object:
        """Send a request; retry until the server answers. Raises `Gone` for 404 and 409, RuntimeError for other 4xx."""
        data = None if body is None else json.dumps(body)
        while True:
            try:
                headers = {"Content-Type": kind}
                async with self._session.request(method, self._url + path, data=data, headers=headers) as answer:
                    text = await answer.text()
            except (aiohttp.ClientError, OSError, TimeoutError):
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if answer.status in (404, 409):
                raise Gone(text)
            if answer.status == 429 or answer.status >= 500:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if answer.status >= 400:
                raise RuntimeError(f"{method} {path}: {answer.status} {text[:1000]}")
            return json.loads(text)

    async def find(self, path: str) -> Object | None:
        try:
            return await self.call("GET", path)
        except Gone:
            return None

    async def follow(self, path: str, selector: str) -> AsyncIterator[tuple[str, Any]]:
        """Yield ("LISTED", [object...]), then (ADDED | MODIFIED | DELETED, object). Never ends."""
        while True:
            listed = await self.call("GET", f"{path}?fieldSelector={selector}")
            yield "LISTED", listed["items"]
            version = listed["metadata"]["resourceVersion"]
            while version:
                query = f"?watch=1&allowWatchBookmarks=1&fieldSelector={selector}&resourceVersion={version}"
                try:
                    async with self._session.get(self._url + path + query) as answer:
                        if answer.status != 200:
                            version = ""
                        async for line in _lines(answer.content):
                            event = json.loads(line)
                            if event["type"] == "ERROR":  # usually 410: the resource version was compacted
                                version = ""
                                break
                            version = event["object"]["metadata"]["resourceVersion"]
                            if event["type"] != "BOOKMARK":
                                yield event["type"], event["object"]
                except (aiohttp.ClientError, OSError, TimeoutError):
                    await asyncio.sleep(RETRY_SECONDS)


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Yield lines of any length, which the stream's own method does not support."""
    pending = b""
    async for chunk in stream.iter_any():
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            yield line
