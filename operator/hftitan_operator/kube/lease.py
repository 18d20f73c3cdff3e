"""Leader election with a Lease (coordination.k8s.io): one of several replicas is active, the others stand by.

kubernetes.aio.leaderelection is not used: it never releases the lease, so that every orderly takeover lasts the whole
lease duration, and it uses the wall clock. kopf's peering is not a lock.

A lease of another replica expires when this replica has observed it unchanged for the lease duration, measured with its
own monotonic clock. Clocks of two machines are never compared (as in client-go's leaderelection.go).
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from hftitan_operator.kube.api import ApiError, Json, KubeApi
from hftitan_operator.kube.retry import level

log = logging.getLogger(__name__)

DURATION_SECONDS = 10.0
RENEW_SECONDS = 2.0
RETRY_SECONDS = 0.5
STANDBY_SECONDS = 2.0
"""Interval of a waiting replica, as in client-go: it acquires a released lease within two seconds."""
REQUEST_SECONDS = 3.0


@dataclass(slots=True)
class Lease:
    """The lease `namespace/name` as seen by the replica `identity`."""

    api: KubeApi
    namespace: str
    name: str
    identity: str
    duration: float = DURATION_SECONDS
    _held_until: float = 0.0
    _written: Json | None = None
    """The lease as this replica wrote it last: a renewal needs no read. None after a failed write."""
    _seen: tuple[object, ...] | None = None
    _seen_at: float = 0.0

    def held(self) -> bool:
        """Return whether this replica may write now. False as soon as another replica can take over."""
        return time.monotonic() < self._held_until

    async def acquire(self) -> None:
        """Wait until this replica holds the lease."""
        failures = 0
        while True:
            try:
                if await self._try():
                    log.info("%s is the leader (lease %s/%s)", self.identity, self.namespace, self.name)
                    return
                failures = 0
            except OSError as error:
                failures += 1
                log.log(level(failures), "lease not acquired: %s; retrying", error)
            await asyncio.sleep(STANDBY_SECONDS)

    async def renew(self) -> None:
        """Renew the lease until it is lost, then return: the process must not write any more."""
        while self.held():
            await asyncio.sleep(min(RENEW_SECONDS, max(0.0, self._held_until - time.monotonic())))
            try:
                while not await self._try():
                    if not self.held():
                        return
                    await asyncio.sleep(RETRY_SECONDS)
            except OSError as error:
                log.warning("lease not renewed: %s", error or type(error).__name__)

    async def release(self) -> None:
        """Release the lease, so that another replica does not wait until it expires."""
        if not self.held():
            return
        self._held_until = 0.0
        try:
            lease = await self._read()
            if lease is not None and lease["spec"].get("holderIdentity") == self.identity:
                lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _now()}
                await self._write("PUT", f"{self._collection}/{self.name}", lease)
        except OSError as error:
            log.warning("lease not released: %s", error)

    async def _try(self) -> bool:
        """Try once to acquire or renew the lease; return whether it is held."""
        began = time.monotonic()
        lease = self._written or await self._read()
        if lease is None:
            fresh: Json = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": self.name, "namespace": self.namespace},
                "spec": self._spec({}),
            }
            return await self._attempt(began, "POST", self._collection, fresh)
        spec = lease.setdefault("spec", {})
        seen = (spec.get("holderIdentity"), spec.get("renewTime"), spec.get("leaseTransitions"))
        if seen != self._seen:
            self._seen, self._seen_at = seen, began
        holder = spec.get("holderIdentity")
        expires = self._seen_at + float(spec.get("leaseDurationSeconds") or self.duration)
        if holder and holder != self.identity and began < expires:
            self._held_until = 0.0
            return False
        lease["spec"] = {**spec, **self._spec(spec)}
        return await self._attempt(began, "PUT", f"{self._collection}/{self.name}", lease)

    async def _attempt(self, began: float, method: str, path: str, lease: Json) -> bool:
        self._written = None
        try:
            self._written = await self._write(method, path, lease)
        except ApiError as error:
            if error.status == 409:  # another replica was faster
                return False
            raise
        self._held_until = began + self.duration
        return True

    def _spec(self, before: Json) -> Json:
        ours = before.get("holderIdentity") == self.identity
        now = _now()
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": max(1, round(self.duration)),
            "acquireTime": before.get("acquireTime", now) if ours else now,
            "renewTime": now,
            "leaseTransitions": int(before.get("leaseTransitions") or 0) + (not ours),
        }

    @property
    def _collection(self) -> str:
        return f"/apis/coordination.k8s.io/v1/namespaces/{self.namespace}/leases"

    async def _read(self) -> Json | None:
        try:
            return await self.api.request("GET", f"{self._collection}/{self.name}", seconds=REQUEST_SECONDS)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def _write(self, method: str, path: str, lease: Json) -> Json:
        assert method in ("POST", "PUT")
        return await self.api.request(method, path, lease, always=True, seconds=REQUEST_SECONDS)  # type: ignore[arg-type]


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
