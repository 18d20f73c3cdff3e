"""One reconciliation of one job: observe, decide, apply, write the status, emit events. The same on every cluster.

Level-triggered: a step may be repeated, missed or cut short at any point, and the next one does what is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from hftitan_api.models import PodDefaults
from hftitan_operator.core.decide import decide
from hftitan_operator.core.defaults import NO_DEFAULTS, with_defaults
from hftitan_operator.core.denied import denied, unserved
from hftitan_operator.core.scheduling import POD_GROUP
from hftitan_operator.core.state import Action, Apply, Decision, Seen
from hftitan_operator.port import ClusterPort, Denied, Unserved


async def step(
    cluster: ClusterPort, namespace: str, name: str, now: float, defaults: PodDefaults = NO_DEFAULTS
) -> float | None:
    """Bring the job one step on; `now` is Unix time. The seconds until time alone calls for another step, or None.
    `defaults` are for pods made in this step.

    Raises what the cluster raises: `Conflict` when the job changed meanwhile (call again at once), OSError for a fault
    worth a retry. The status is written once and only when it differs, the events after it, so that an event is not
    repeated for a change that was written down.
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
        decision = await _seen_through(cluster, seen, decision, now, defaults)
    if decision.status != seen.job.status:
        await cluster.write_status(seen.job, decision.status)
    for event in decision.events:
        await cluster.emit(seen.job, event)
    return decision.recheck_after


async def _seen_through(
    cluster: ClusterPort, seen: Seen, decision: Decision, now: float, defaults: PodDefaults
) -> Decision:
    """The decision once its creations are seen, if that only says more of the same phase: one status write for both."""
    if decision.recheck_after == 0.0 or not any(isinstance(action, Apply) for action in decision.actions):
        return decision
    after = await cluster.observe(seen.job.metadata.namespace, seen.job.metadata.name)
    if after is None or after.job.metadata != seen.job.metadata:
        return decision
    told = seen.job.model_copy(update={"status": decision.status})
    following = decide(with_defaults(told, defaults), after.observed, now, after.problems)
    if following.actions or following.status.phase != decision.status.phase:
        return decision
    return replace(following, events=decision.events + following.events)


def batches(actions: Sequence[Action]) -> list[list[Action]]:
    """Actions that may be done at once, in the order of the batches: a pod finds its config and its name service, and
    where nobody knows its PodGroup nothing is made."""

    def kind(action: Action) -> object:
        if not isinstance(action, Apply):
            return type(action)
        of = action.manifest["kind"]
        return of if of in ("Pod", POD_GROUP) else "what pods need"

    return [list(group) for _, group in groupby(actions, kind)]


async def _all(calls: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Every call to its end, also when one fails; then the first fault, one worth a retry before one that is not."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    faults = [result for result in results if isinstance(result, BaseException)]
    if faults:
        raise min(faults, key=lambda fault: isinstance(fault, Denied))
