"""The Kubernetes API as plain JSON over one aiohttp session.

The only file that knows kubernetes.aio: its configuration (kubeconfig, in-cluster account, exec plugins, refreshed
tokens), not its models. A pod made through them costs 1.7 ms of processor time, as JSON 0.3 ms (measured on 2 cores),
and a typed pod takes 37 KiB.

No request is retried here. A pass that fails is repeated as a whole by the work queue, within a second or two, and
finds what is already done.
"""

from __future__ import annotations

import json
import logging
import os
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import aiohttp
import orjson
import yaml
from kubernetes.aio import config as kube_config
from kubernetes.aio.client import Configuration
from kubernetes.aio.client.rest import RESTClientObject
from kubernetes.aio.config.kube_config import KUBE_CONFIG_DEFAULT_LOCATION, KubeConfigMerger

log = logging.getLogger(__name__)

Json = dict[str, Any]
Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]

MERGE_PATCH = "application/merge-patch+json"
METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"

REQUEST_SECONDS = 10.0
"""Of one request, or of a silence in a longer one. Whether a write that timed out was done shows the next pass."""
SILENCE_SECONDS = 75.0
"""A watch that says nothing for longer, not even one of the bookmarks that come every minute, is dead."""
IDLE_SECONDS = 60.0
"""An unused connection is kept so long, since a new one costs a handshake. The API server's own limit is 90 s."""
TOKEN_CHECK_SECONDS = 10.0
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class ApiError(OSError):
    """The API server said no. `str()` is its message."""

    def __init__(self, status: int, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message or reason or f"HTTP {status}")
        self.status = status
        self.reason = reason
        """Kubernetes' word: AlreadyExists, Conflict, NotFound, Forbidden, Expired, ..."""
        self.retry_after = retry_after
        """Seconds the server asks to wait, for 429 and 503."""


class NotLeading(OSError):
    """This process may not write: the lease is not, or no longer, its own."""


async def load_configuration(kubeconfig: str | None = None, context: str | None = None) -> Configuration:
    """The account of the pod this runs in, or a kubeconfig: the one named, or kubectl's. OSError with a fix if none."""
    configuration = Configuration()
    try:
        if kubeconfig is None and context is None:
            try:
                kube_config.load_incluster_config(  # type: ignore[no-untyped-call]
                    client_configuration=configuration
                )
                return configuration
            except kube_config.ConfigException:
                pass
        if not _is_there(location := kubeconfig or KUBE_CONFIG_DEFAULT_LOCATION):
            raise OSError(f"no access to a cluster: there is no {location}; give --kubeconfig FILE or set KUBECONFIG")
        await kube_config.load_kube_config(  # type: ignore[no-untyped-call]
            kubeconfig, context, configuration, persist_config=False
        )
    except (kube_config.ConfigException, FileNotFoundError) as error:
        raise OSError(f"no access to a cluster ({error}); give --kubeconfig FILE or set KUBECONFIG") from error
    return configuration


async def user_access(kubeconfig: str | None, context: str | None) -> tuple[Configuration, str]:
    """Access and namespace of a person, as kubectl finds them: the kubeconfig, and without one the pod this runs in.

    Raises OSError with a fix.
    """
    location = kubeconfig or KUBE_CONFIG_DEFAULT_LOCATION
    there = _is_there(location)
    if kubeconfig is not None and not there:
        raise OSError(f"--kubeconfig {kubeconfig}: no such file")
    if not there:
        configuration = await load_configuration(context=context)
        return configuration, NAMESPACE_FILE.read_text(encoding="utf-8").strip() or "default"
    try:
        merged = KubeConfigMerger(location).config.value  # type: ignore[no-untyped-call]
        contexts = {entry.value["name"]: entry.value.get("context") or {} for entry in merged["contexts"]}
        chosen = context or merged.get("current-context")
    except (kube_config.ConfigException, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise OSError(f"{location}: is no kubeconfig ({type(error).__name__}: {error})") from error
    if chosen not in contexts:
        known = f"there are {', '.join(contexts)}" if contexts else f"{location} has none"
        asked = f"context {chosen!r} is not in the kubeconfig" if chosen else "the kubeconfig has no current-context"
        raise OSError(f"{asked}; choose one with --context ({known})")
    return await load_configuration(location, chosen), str(contexts[chosen].get("namespace") or "default")


def _is_there(location: str) -> bool:
    """Whether one of the kubeconfigs exists that a path list names."""
    return any(Path(part).expanduser().is_file() for part in location.split(os.pathsep) if part)


class KubeApi:
    """Raw requests. Use as `async with KubeApi(configuration) as api`."""

    def __init__(self, configuration: Configuration) -> None:
        self.server: str = str(configuration.host).rstrip("/")
        self.may_write: Callable[[], bool] = lambda: True
        """Asked before every write but those of the lease itself."""
        self.observe_request: Callable[[str, int], None] = lambda method, status: None
        """Told of every finished request; status 0: no answer."""
        self._configuration = configuration
        self._session: aiohttp.ClientSession | None = None
        self._headers: dict[str, str] = {}
        self._headers_until = 0.0

    async def __aenter__(self) -> Self:
        self._session = self.new_session()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    def new_session(self, headers: Mapping[str, str] | None = None) -> aiohttp.ClientSession:
        """A connection pool of its own to the same server, for a watch that another library reads."""
        configuration = self._configuration
        connector = aiohttp.TCPConnector(
            limit=0, keepalive_timeout=IDLE_SECONDS, ssl=RESTClientObject(configuration).ssl_context
        )
        proxy = configuration.proxy or _proxy(self.server)
        return aiohttp.ClientSession(connector=connector, headers=headers, proxy=proxy)

    async def authorization(self) -> dict[str, str]:
        """The header that says who we are. Tokens are looked at every few seconds: they are replaced while we run."""
        now = time.monotonic()
        if now >= self._headers_until:
            settings: Mapping[str, Any] = await self._configuration.auth_settings()
            token = settings.get("BearerToken", {}).get("value")
            if not token and self._configuration.username:
                token = self._configuration.get_basic_auth_token()
            self._headers = {"Authorization": token} if token else {}
            self._headers_until = now + TOKEN_CHECK_SECONDS
        return self._headers

    async def request(
        self,
        method: Method,
        path: str,
        body: Json | None = None,
        *,
        params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        always: bool = False,
        seconds: float = REQUEST_SECONDS,
    ) -> Json:
        """One request, its answer as JSON. `always`: also without `may_write`.

        Raises ApiError for what the server refuses, NotLeading, TimeoutError and other OSErrors for no answer.
        """
        if method != "GET" and not always and not self.may_write():
            raise NotLeading("this replica does not lead")
        assert self._session is not None
        headers = {**await self.authorization(), "Accept": accept, "Accept-Encoding": "identity"}
        data = None
        if body is not None:
            data = _text(body)
            headers["Content-Type"] = content_type
        status = 0
        try:
            async with self._session.request(
                method,
                self.server + path,
                params=params,
                data=data,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=seconds, sock_read=min(seconds, REQUEST_SECONDS)),
            ) as response:
                text = await response.read()
                status = response.status
                if status >= 400:
                    raise _error(response, text)
                answer: Json = _read(text)
                return answer
        except aiohttp.ClientError as error:
            raise OSError(f"{method} {path}: {error or type(error).__name__}") from error
        except TimeoutError:
            raise TimeoutError(f"{method} {path}: no answer within {seconds:g} s") from None
        except ValueError as error:
            raise OSError(f"{method} {path}: the answer is no JSON ({error})") from error
        finally:
            self.observe_request(method, status)
            if status == 401:
                self._headers_until = 0.0

    async def watch(self, path: str, params: Mapping[str, str], accept: str) -> AsyncIterator[Json]:
        """The events of a watch until the server ends it. Raises ApiError (410: list again), or other OSErrors."""
        assert self._session is not None
        timeout = aiohttp.ClientTimeout(total=None, connect=REQUEST_SECONDS, sock_read=SILENCE_SECONDS)
        headers = {**await self.authorization(), "Accept": accept, "Accept-Encoding": "identity"}
        try:
            async with self._session.get(
                self.server + path, params={**params, "watch": "1"}, headers=headers, timeout=timeout
            ) as response:
                if response.status >= 400:
                    if response.status == 401:
                        self._headers_until = 0.0
                    raise _error(response, await response.read())
                async for line in _lines(response.content):
                    event: Json = _read(line)
                    if event.get("type") == "ERROR":
                        said = event.get("object", {})
                        raise ApiError(said.get("code", 500), said.get("reason", ""), said.get("message", ""))
                    yield event
        except aiohttp.ClientError as error:
            raise OSError(f"watch {path}: {error or type(error).__name__}") from error
        except ValueError as error:
            raise OSError(f"watch {path}: a line is no JSON ({error})") from error

    async def lines(self, path: str, params: Mapping[str, str]) -> AsyncIterator[str]:
        """The lines of a text that may go on for ever and be silent for hours: a container's log."""
        assert self._session is not None
        timeout = aiohttp.ClientTimeout(total=None, connect=REQUEST_SECONDS)
        headers = {**await self.authorization(), "Accept": "*/*", "Accept-Encoding": "identity"}
        try:
            async with self._session.get(
                self.server + path, params=params, headers=headers, timeout=timeout
            ) as response:
                if response.status >= 400:
                    raise _error(response, await response.read())
                async for line in _lines(response.content, torn=True):
                    yield line.decode("utf-8", "replace")
        except aiohttp.ClientError as error:
            raise OSError(f"GET {path}: {error or type(error).__name__}") from error


def _proxy(server: str) -> str | None:
    """HTTPS_PROXY, HTTP_PROXY and NO_PROXY, read once. With `trust_env` aiohttp reads them at each request, and sends a
    thread to look for a ~/.netrc."""
    url = urlsplit(server)
    if urllib.request.proxy_bypass(url.hostname or ""):
        return None
    return urllib.request.getproxies().get(url.scheme)


async def _lines(content: aiohttp.StreamReader, *, torn: bool = False) -> AsyncIterator[bytes]:
    """Complete lines of any length; aiohttp's own reading by line has a limit that a large object exceeds. `torn`:
    at the end also what has no line end."""
    rest = b""
    async for chunk in content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n") if rest else chunk.split(b"\n")
        for line in lines:
            if line:
                yield line
    if torn and rest:
        yield rest


def _read(text: bytes) -> Any:
    """JSON by the fast reader; what that refuses (a thousand levels) by the standard library's."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(text)


def _text(body: Json) -> bytes:
    """Likewise; the fast writer refuses numbers beyond 64 bits and half characters."""
    try:
        return orjson.dumps(body)
    except TypeError:
        return json.dumps(body).encode()


def _error(response: aiohttp.ClientResponse, text: bytes) -> ApiError:
    try:
        said = _read(text)
        reason, message = str(said.get("reason", "")), str(said.get("message", ""))
    except (ValueError, AttributeError):
        reason, message = response.reason or "", text[:200].decode("utf-8", "replace")
    try:
        retry_after = float(response.headers["Retry-After"])
    except (KeyError, ValueError):
        retry_after = None
    return ApiError(response.status, reason, message, retry_after)
