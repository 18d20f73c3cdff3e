"""One step of one job: observe, decide, apply, write the status, tell. The same for every cluster.

Level-triggered: a step may be repeated, missed or cut short at any point, and the next one does what is left.
"""

from __future__ import annotations

from hftitan_operator.cluster.port import ClusterPort
from hftitan_operator.core.decide import decide


async def step(cluster: ClusterPort, namespace: str, name: str, now: float) -> float | None:
    """Bring the job one step on; `now` is Unix time. The seconds until time alone calls for another step, or None.

    Raises what the cluster raises: `Conflict` when the job changed meanwhile (call again at once), OSError for a fault
    worth a retry. The status is written once and only when it differs, the events after it, so that an event is not
    repeated for a change that was written down.
    """
    seen = await cluster.observe(namespace, name)
    if seen is None:
        return None
    decision = decide(seen.job, seen.observed, now)
    for action in decision.actions:
        await cluster.apply(seen.job, action)
    if decision.status != seen.job.status:
        await cluster.write_status(seen.job, decision.status)
    for event in decision.events:
        await cluster.emit(seen.job, event)
    return decision.recheck_after
