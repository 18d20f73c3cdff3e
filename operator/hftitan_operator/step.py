"""One reconciliation of one job: observe, decide, apply, write the status, emit events. The same for every adapter.

Level-triggered: a step may be repeated, missed or interrupted at any point, and the next step completes the work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from hftitan_api.models import PodDefaults
from hftitan_operator.core.lifecycle.decide import decide
from hftitan_operator.core.lifecycle.denied import denied, unserved
from hftitan_operator.core.rendering.defaults import NO_DEFAULTS, with_defaults
from hftitan_operator.core.rendering.scheduling import POD_GROUP
from hftitan_operator.core.state import Action, Apply, Decision, Seen
from hftitan_operator.port import ClusterPort, Denied, Unserved


async def step(
    cluster: ClusterPort, namespace: str, name: str, now: float, defaults: PodDefaults = NO_DEFAULTS
) -> float | None:
    """Reconcile the job once. Return the seconds after which another step is needed, or None to wait for a change.

    `now` is Unix time; `defaults` apply to pods created in this step. Raises the adapter's errors: `Conflict` if the
    job changed concurrently (call again at once), OSError for a fault that a retry may fix. The status is written at
    most once, only if it changed, and before the events, so that no event is repeated for a change that was written.
    """
    seen = await cluster.observe(namespace, name)
    if seen is None:
        return None
    decision = decide(with_defaults(seen.job, defaults), seen.observed, now, seen.problems)
    try:
        for together in batches(decision.actions):
            await _all(cluster.apply(seen.job, action) for action in together)
    except Unserved as error:
        decision = unserved(seen.job, decision, str(error), now)
    except Denied as error:
        decision = denied(seen.job, decision, str(error), now)
    else:
        decision = await _after_creation(cluster, seen, decision, now, defaults)
    if decision.status != seen.job.status:
        await cluster.write_status(seen.job, decision.status)
    for event in decision.events:
        await cluster.emit(seen.job, event)
    return decision.recheck_after


async def _after_creation(
    cluster: ClusterPort, seen: Seen, decision: Decision, now: float, defaults: PodDefaults
) -> Decision:
    """Decide again after objects were created. If the new decision has the same phase and no actions, return it with
    the events of both: one status write is then enough."""
    if decision.recheck_after == 0.0 or not any(isinstance(action, Apply) for action in decision.actions):
        return decision
    after = await cluster.observe(seen.job.metadata.namespace, seen.job.metadata.name)
    if after is None or after.job.metadata != seen.job.metadata:
        return decision
    updated = seen.job.model_copy(update={"status": decision.status})
    following = decide(with_defaults(updated, defaults), after.observed, now, after.problems)
    if following.actions or following.status.phase != decision.status.phase:
        return decision
    return replace(following, events=decision.events + following.events)


def batches(actions: Sequence[Action]) -> list[list[Action]]:
    """Group actions into batches: the actions of one batch may run concurrently, the batches run in order. A pod needs
    its config and its Service, and nothing is created if the cluster does not serve the PodGroup."""

    def kind(action: Action) -> object:
        if not isinstance(action, Apply):
            return type(action)
        of = action.manifest["kind"]
        return of if of in ("Pod", POD_GROUP) else "needed by pods"

    return [list(group) for _, group in groupby(actions, kind)]


async def _all(calls: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Await every call, also if one fails. Then raise the first error, Denied only without any other."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    faults = [result for result in results if isinstance(result, BaseException)]
    if faults:
        raise min(faults, key=lambda fault: isinstance(fault, Denied))
