"""Access to the jobs of a cluster with the user's own kubeconfig and namespace. Errors say what to do."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from hftitan_api.models import GROUP, KIND, PLURAL, VERSION
from hftitan_operator.core import naming
from hftitan_operator.kube.api import MERGE_PATCH, ApiError, Json, KubeApi, Method, user_access

RESOURCE = f"{PLURAL}.{GROUP}"
PAGE = 500
RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0)
"""Pauses while a watch finds no API server; the last one again and again."""
SHOWN_NAMES = 8


class Trouble(Exception):
    """Why a command cannot do what it was asked; one line for each thing to say."""

    def __init__(self, *lines: str, code: int = 1) -> None:
        super().__init__("\n".join(lines))
        self.lines, self.code = lines, code


@dataclass(frozen=True, slots=True)
class Access:
    """What the user said about which cluster and namespace."""

    kubeconfig: str | None = None
    context: str | None = None
    namespace: str | None = None


@contextlib.asynccontextmanager
async def connect(access: Access) -> AsyncIterator[Cluster]:
    """Raises Trouble without a usable kubeconfig. Nothing is asked of the API server yet."""
    try:
        configuration, namespace = await user_access(access.kubeconfig, access.context)
        api = KubeApi(configuration)
    except OSError as error:
        raise Trouble(str(error)) from error
    async with contextlib.AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(api)  # reads the certificates
        except OSError as error:
            raise Trouble(f"a certificate of the kubeconfig cannot be read: {error}") from error
        yield Cluster(api, access.namespace or namespace)


class Cluster:
    """The few requests that the commands make, each with its verb and resource as RBAC calls them. Raises Trouble."""

    def __init__(self, api: KubeApi, namespace: str) -> None:
        self.api, self.namespace = api, namespace

    # --- jobs -----------------------------------------------------------------------------------------------

    async def job(self, name: str) -> Json:
        return await self._on_job("get", "GET", name)

    async def jobs(self, *, everywhere: bool = False, labels: str | None = None) -> Json:
        """The list as the API server gives it, all its pages in one."""
        path = f"/apis/{GROUP}/{VERSION}/{PLURAL}" if everywhere else self._jobs()
        params = {"labelSelector": labels} if labels else {}
        return await self._list(path, params, "" if everywhere else self.namespace)

    async def create(self, job: Json, *, dry_run: bool = False) -> Json:
        params = {"dryRun": "All"} if dry_run else {}
        return await self._ask("create", RESOURCE, "POST", self._jobs(), job, params, name=job["metadata"]["name"])

    async def set_suspend(self, name: str, suspend: bool) -> Json:
        return await self._on_job("patch", "PATCH", name, {"spec": {"runPolicy": {"suspend": suspend}}})

    async def delete(self, name: str) -> Json:
        return await self._on_job("delete", "DELETE", name, {"propagationPolicy": "Background"})

    async def follow(self, name: str) -> AsyncIterator[Json | None]:
        """The job as it is now and after each change, over any number of connections; None when it is gone."""
        found = await self.job(name)
        uid, failures = found["metadata"]["uid"], 0
        yield found
        while True:
            version = found["metadata"]["resourceVersion"]
            params = {"fieldSelector": f"metadata.name={name}", "resourceVersion": version}
            try:
                async for event in self.api.watch(self._jobs(), params, "application/json"):
                    failures = 0
                    if event["type"] == "DELETED" or event["object"]["metadata"]["uid"] != uid:
                        yield None
                        return
                    yield event["object"]
            except ApiError as error:
                if error.status in (401, 403):
                    raise explain(error, "watch", RESOURCE, name, self.namespace, self.api.server) from error
            except OSError:
                pass
            while True:  # the watch has ended: after minutes as usual, or with its server
                await asyncio.sleep(RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)] if failures else 0)
                try:
                    found = await self.api.request("GET", f"{self._jobs()}/{name}")
                    break
                except ApiError as error:
                    if error.status == 404:
                        yield None
                        return
                    if error.status < 500 and error.status != 429:
                        raise explain(error, "get", RESOURCE, name, self.namespace, self.api.server) from error
                except OSError:
                    pass
                failures += 1
            failures += 1
            if found["metadata"]["uid"] != uid:
                yield None
                return
            if found["metadata"]["resourceVersion"] != version:
                yield found

    # --- what belongs to a job --------------------------------------------------------------------------------

    async def pods(self, job: str) -> list[Json]:
        labels = {"labelSelector": f"{naming.LABEL_JOB}={job}"}
        listed = await self._list(f"/api/v1/namespaces/{self.namespace}/pods", labels, self.namespace, "pods")
        return list(listed["items"])

    async def pod(self, name: str) -> Json:
        return await self._ask("get", "pods", "GET", self.pod_path(name), name=name)

    async def events(self, **fields: str) -> list[Json]:
        """Of the objects with these fields (kind, name), in the order they were last seen."""
        selector = ",".join(f"involvedObject.{key}={value}" for key, value in fields.items())
        path = f"/api/v1/namespaces/{self.namespace}/events"
        listed = await self._list(path, {"fieldSelector": selector} if selector else {}, self.namespace, "events")
        return sorted(listed["items"], key=_seen)

    async def events_of(self, job: str) -> list[Json]:
        """Of the job and of its pods, past ones too: why a pod is not scheduled stands in its own events."""
        found = await asyncio.gather(self.events(kind=KIND, name=job), self.events(kind="Pod"))
        pods = [event for event in found[1] if naming.is_pod_of(event["involvedObject"].get("name", ""), job)]
        return sorted([*found[0], *pods], key=_seen)

    def pod_path(self, name: str) -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods/{name}"

    # --- requests -------------------------------------------------------------------------------------------

    def _jobs(self) -> str:
        return f"/apis/{GROUP}/{VERSION}/namespaces/{self.namespace}/{PLURAL}"

    async def _on_job(self, verb: str, method: Method, name: str, body: Json | None = None) -> Json:
        try:
            return await self._ask(verb, RESOURCE, method, f"{self._jobs()}/{name}", body, name=name)
        except NotFound as error:
            names: list[str] = []
            with contextlib.suppress(Trouble):  # who may not list is told without
                names = [each["metadata"]["name"] for each in (await self.jobs())["items"]]
            raise Trouble(not_found(name, self.namespace, names)) from error

    async def _list(self, path: str, params: Mapping[str, str], namespace: str, resource: str = RESOURCE) -> Json:
        params = {**params, "limit": str(PAGE)}
        whole = page = await self._ask("list", resource, "GET", path, params=params, namespace=namespace)
        while page["metadata"].get("continue"):
            params = {**params, "continue": page["metadata"]["continue"]}
            page = await self._ask("list", resource, "GET", path, params=params, namespace=namespace)
            whole["items"] += page["items"]
        whole["metadata"].pop("continue", None)
        whole["metadata"].pop("remainingItemCount", None)
        return whole

    async def _ask(
        self,
        verb: str,
        resource: str,
        method: Method,
        path: str,
        body: Json | None = None,
        params: Mapping[str, str] | None = None,
        *,
        name: str = "",
        namespace: str | None = None,
    ) -> Json:
        where = self.namespace if namespace is None else namespace
        kind = MERGE_PATCH if method == "PATCH" else "application/json"
        try:
            return await self.api.request(method, path, body, params=params, content_type=kind)
        except OSError as error:
            raise explain(error, verb, resource, name, where, self.api.server) from error


def _seen(event: Json) -> tuple[str, int]:
    when = event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp") or ""
    version = event["metadata"].get("resourceVersion", "0")
    return str(when), int(version) if version.isdigit() else 0


# --- errors -------------------------------------------------------------------------------------------------


class NotFound(Trouble):
    """The object is not there; its kind is."""


def explain(error: OSError, verb: str, resource: str, name: str, namespace: str, server: str) -> Trouble:
    """The error of a request in the user's terms. `namespace` is empty for all of them."""
    where = f"in namespace {namespace}" if namespace else "in all namespaces"
    if not isinstance(error, ApiError):
        return Trouble(f"no answer from {server}: {error}", "is the cluster up, and the right one? see --context")
    said = str(error)
    if error.status == 401:
        return Trouble(f"{server} does not know you ({said}): log in again, or choose another --context")
    if error.status == 403 and error.reason in ("Forbidden", "") and "is forbidden: User" in said:
        return Trouble(
            f"you may not {verb} {resource} {where}: {said}",
            f"ask who runs the cluster for the verb {verb!r} on {resource}",
        )
    if error.status == 404 and 'namespaces "' in said:
        return Trouble(f"there is no namespace {namespace}; `kubectl create namespace {namespace}` makes it")
    if error.status == 404 and '" not found' not in said:
        return Trouble(
            f"{server} has no {resource}: the HFTitanJob resource is not installed",
            "`hftitan crd | kubectl apply -f -` installs it",
        )
    if error.status == 404:
        return NotFound(f"no {resource} {name} {where}")
    if error.reason == "AlreadyExists":
        return Trouble(
            f"job {name} is there already {where}: `hftitan status {name}` shows it; delete it first, or submit under "
            f"another name with --set metadata.name=NAME"
        )
    refused = verb == "create" and error.status in (400, 422)
    return Trouble(f"{verb} {resource} {name}: {said}", code=2 if refused else 1)


def not_found(name: str, namespace: str, names: Sequence[str]) -> str:
    """With the names that were likely meant, else some of those that there are."""
    text = f"no job {name} in namespace {namespace}"
    near = difflib.get_close_matches(name, names, 3, 0.6) or [each for each in names if name in each][:3]
    if near:
        return f"{text}; did you mean {' or '.join(near)}?"
    if names:
        more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
        return f"{text}; there are {', '.join(sorted(names)[:SHOWN_NAMES])}{more}"
    return f"{text}, which has none that you can see; `hftitan list -A` looks in all namespaces"
