"""Hostile jobs: malicious files, and forged statuses."""

from __future__ import annotations

from typing import Any

from hostile_job import OPERATOR, SERVER, STATUS, Hostile, job

HEAD = "apiVersion: hftitan.io/v1alpha1\nkind: HFTitanJob\nmetadata: {name: hostile}\n"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 10)}]\n" for i in range(9)
)
MERGES = "m0: &m0 {k: v}\n" + "".join(
    f"m{i}: &m{i} {{x: *m{i - 1}, y: *m{i - 1}, <<: *m{i - 1}}}\n" for i in range(1, 30)
)
FILES = [
    Hostile(f"file-{name}", text, OPERATOR, says, carrier="yaml")
    for name, text, says in (
        ("empty", "", "empty"),
        ("bom-alone", "\ufeff", "empty"),
        ("list", "- a\n- b\n", "this is not a job"),
        ("text", "just words", "this is not a job"),
        ("aliases-without-end", BOMB, "expand to more than"),
        ("merges-without-end", MERGES, "expand to more than"),
        ("alias-of-itself", HEAD + "spec: &a {model: *a}\n", "alias"),
        ("nested-5000", HEAD + "spec: " + "[" * 5000 + "]" * 5000, "nested deeper than"),
        ("nested-5000-json", '{"a":' * 5000 + "1" + "}" * 5000, "nested deeper than"),
        ("values-30000", "a: [" + "1, " * 30_000 + "1]", "more than 20000 values"),
        ("larger-than-1-mib", "a: " + "x" * (1024 * 1024 + 1), "bytes are too many; use at most 1048576"),
        ("python-object", HEAD + "spec: !!python/object/apply:os.system [id]\n", "tag"),
        ("binary", HEAD + "spec: !!binary aGk=\n", "tag"),
        ("key-twice", HEAD + "kind: Pod\n", "defined twice"),
        ("key-number", HEAD + "1: x\n", "put it in quotes"),
        ("key-list", HEAD + "? [a]\n: x\n", "a key must be text"),
        ("two-documents", HEAD + "---\n" + HEAD, "a second document"),
        ("tab", HEAD + "spec:\n\tmodel: x\n", "tabs are not allowed"),
        ("control-character", HEAD + "spec: \x07\n", "U+0007"),
        ("number-of-5000-digits", HEAD + f"spec: {{training: {{steps: {'9' * 5000}}}}}\n", "a number of 5000"),
        ("1e400", HEAD + "spec: {optimizer: {lr: 1e400}}\n", "infinity"),
        ("nan", HEAD + "spec: {optimizer: {lr: .nan}}\n", "infinity and NaN"),
        ("yes-is-no-boolean", HEAD + "spec: {runPolicy: {suspend: 'yes'}}\n", "spec.runPolicy.suspend"),
    )
]

TIME = "2026-11-24T12:00:00Z"


def lie(name: str, says: str = "", /, spec: dict[str, Any] | None = None, **status: Any) -> Hostile:
    return Hostile(f"status-{name}", job(status=status, **(spec or {})), STATUS, says)


def condition(kind: str, truth: str = "True", **fields: Any) -> dict[str, Any]:
    return {
        "type": kind,
        "status": truth,
        "reason": "Lie",
        "lastTransitionTime": TIME,
        "observedGeneration": 1,
        **fields,
    }


LIES = [
    lie("succeeded", phase="Succeeded"),
    lie("failed-long-ago", phase="Failed", completionTime="1970-01-01T00:00:00Z"),
    lie("ended-long-ago", phase="Succeeded", completionTime=TIME, spec={"runPolicy": {"ttlSecondsAfterFinished": 0}}),
    lie("phase-unknown", phase="Exploded"),
    lie("attempt-10-9", attempt=10**9),
    lie("attempt-near-its-limit", attempt=999_998, phase="Restarting"),
    lie("attempt-negative", attempt=-1, phase="Running"),
    lie("attempt-text", attempt="7"),
    lie("running-without-pods", phase="Running", attempt=3, conditions=[condition("PodsCreated")]),
    lie("suspended", phase="Suspended", attempt=3, activeSince=TIME),
    lie("conditions-text", conditions="Accepted"),
    lie("conditions-numbers", conditions=[1, 2, 3]),
    lie("conditions-twice", conditions=[condition("Failed"), condition("Failed", "False")]),
    lie("conditions-unknown", conditions=[condition("Exploded", message="x" * 32_768)]),
    lie("history-10000", restartHistory=[{"time": TIME, "attempt": 1, "reason": "Killed", "step": 1}] * 10_000),
    lie("history-of-no-time", restartHistory=[{"time": "long ago", "attempt": 1, "reason": "Killed"}], attempt=1),
    lie("start-yesterday", startTime="yesterday", phase="Running", attempt=1),
    lie("start-on-no-day", startTime="2026-99-99T99:99:99Z", activeSince="2026-02-30T00:00:00Z", phase="Running"),
    lie("start-in-the-year-1", activeSince="0001-01-01T00:00:00Z", phase="Running", attempt=1),
    lie("active-for-ever", activeSeconds=1e308, activeSince=TIME, phase="Running", attempt=1),
    lie("mesh-of-another-job", "spec.mesh: changed from 9x9", mesh="9x9", attempt=1, phase="Running"),
    lie("progress-text", progress="soon"),
    lie("progress-10-30", progress={"step": 10**30}, checkpoint={"step": -1}),
    lie("goodput-text", goodput="1e400", exportPath=["/etc"]),
    lie("unknown-fields", phase="Running", pwned=True, nested={"a": {"b": {}}}),
    lie("message-1-mib", message="x" * 1024 * 1024),
    Hostile("status-list", job(status=[1]), STATUS),
    Hostile("status-text", job(status="Succeeded"), STATUS),
    # The forged status says that the job is accepted; the operator must check it again before it renders pods.
    lie(
        "accepted-env",
        "PET_NNODES is set by the operator",
        spec={"pod": {"env": [{"name": "PET_NNODES", "value": "9"}]}},
        phase="Pending",
        conditions=[condition("Accepted")],
    ),
    lie(
        "accepted-seccomp",
        "reserved for Kubernetes",
        spec={"pod": {"annotations": {"container.seccomp.security.alpha.kubernetes.io/trainer": "unconfined"}}},
        phase="Pending",
        conditions=[condition("Accepted")],
    ),
    Hostile(
        "status-accepted-mesh",
        job(status={"conditions": [condition("Accepted")]}, mesh={"dpShard": 7}),
        SERVER,
        "use 1 or -1",
        ("cel",),
    ),
]  # fmt: skip
TABLE = [*FILES, *LIES]
