"""Builders for the core's tests: a job, an observed pod, an observation."""

from __future__ import annotations

from typing import Any

from hftitan_api.models import HFTitanJob
from hftitan_api.wire import ExitReport, Progress
from hftitan_operator.core.lifecycle.decide import decide
from hftitan_operator.core.state import Decision, Observed, PodView

T0 = 1_800_000_000.0
"""2027-01-15T08:00:00Z: whole seconds, as all times in a status."""


def job(
    *,
    nodes: int = 2,
    name: str = "x",
    status: dict[str, Any] | None = None,
    meta: dict[str, Any] | None = None,
    **spec: Any,
) -> HFTitanJob:
    """Return a CPU job. Keywords are sections of the spec in camelCase: `runPolicy={...}`, `pod={...}`."""
    body: dict[str, Any] = {
        "model": {"name": "org/model"},
        "dataset": {"name": "org/data"},
        "mesh": {"nodes": nodes, "device": "cpu"},
        "training": {"steps": 100},
        "checkpoint": {"volume": "claim"},
    }
    for section, values in spec.items():
        body[section] = {**body.get(section, {}), **values}
    return HFTitanJob.model_validate(
        {
            "metadata": {"name": name, "namespace": "team", "uid": "uid", **(meta or {})},
            "spec": body,
            "status": status or {},
        }
    )


def pod(index: int = 0, attempt: int = 1, phase: str = "Running", name: str = "x", **changes: Any) -> PodView:
    report = changes.pop("report", None)
    if isinstance(report, str):
        report = {"reason": report, "retryable": report not in ("UserError", "NonFiniteLoss", "Completed")}
    if isinstance(report, dict):
        report = ExitReport.model_validate(report)
    if phase == "Running":
        changes = {"ready": True, "started_at": T0, **changes}
    if phase == "Succeeded":
        changes = {"exit_code": 0, **changes}
    full = f"{name}-{attempt}-{index}"
    return PodView(
        name=full,
        uid=f"uid-{full}",
        attempt=attempt,
        index=index,
        phase=phase,
        report=report,
        node=f"n{index}",
        **changes,
    )


def progress(step: int, *, attempt: int = 1, phase: str = "training", updated: float = T0, **values: Any) -> Progress:
    return Progress.model_validate(
        {"attempt": attempt, "phase": phase, "step": step, "steps": 100, "updated": updated, **values}
    )


def seen(*pods: PodView, **values: Any) -> Observed:
    return Observed(pods=pods, **{"service": True, "config": True, **values})


def with_status(of: HFTitanJob, decision: Decision) -> HFTitanJob:
    return of.model_copy(update={"status": decision.status})


def edited(of: HFTitanJob, **spec: Any) -> HFTitanJob:
    """Return the job after a `kubectl edit`: sections merged, generation increased by one."""
    body = of.spec.to_dict()
    for section, values in spec.items():
        body[section] = {**body.get(section, {}), **values}
    data = of.model_dump(mode="json", by_alias=True, exclude_none=True)
    data["spec"] = body
    data["metadata"]["generation"] = of.metadata.generation + 1
    return HFTitanJob.model_validate(data)


def settle(of: HFTitanJob, observed: Observed, now: float) -> tuple[HFTitanJob, list[Decision]]:
    """Decide until the status is stable for this observation; return the job with its status, and the decisions."""
    decisions = []
    for _ in range(6):
        decisions.append(decide(of, observed, now))
        of = with_status(of, decisions[-1])
        if decisions[-1].recheck_after != 0:
            return of, decisions
    raise AssertionError(f"not stable: {[d.status.message for d in decisions]}")


def running(
    of: HFTitanJob | None = None, *, now: float = T0, step: int | None = 10, checkpoint: int | None = None
) -> HFTitanJob:
    """Return a job whose first attempt is training."""
    of = of or job()
    nodes = of.spec.mesh.nodes
    of, _ = settle(of, Observed(), now)
    shown = None if step is None else progress(step, updated=now, checkpoint_step=checkpoint)
    of, _ = settle(of, seen(*(pod(i) for i in range(nodes)), progress=shown), now)
    return of
