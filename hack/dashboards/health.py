"""The operator dashboard: leader, queue, reconciliations, API requests, resources."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from parts import RATE, dashboard_of, lines, number

DURATIONS = f"rate(hftitan_operator_reconcile_duration_seconds_bucket[{RATE}])"
PROCESS = "on (instance, job) group_left () max by (instance, job) (hftitan_operator_info)"
"""Selects the operator's processes among all that Prometheus scrapes."""


def health() -> dashboard.Dashboard:
    made = dashboard_of(
        "hftitan-operator", "HFTitanJob / Operator", "Leader, reconciliations, errors, API requests, resources."
    )
    panels = [
        number("Replicas", "count(hftitan_operator_info)", span=4),
        number("Leaders", "sum(hftitan_operator_leader)", help="Expected: one per installed release.", span=4),
        number("Version", "max by (version) (hftitan_operator_info)", legend="{{version}}", span=4),
        number("Jobs", "sum(hftitan_jobs)", span=4),
        number("Queue depth", "sum(hftitan_operator_queue_depth)", help="Jobs that wait for reconciliation.", span=4),
        number(
            "Reconciliations/s",
            f"sum(rate(hftitan_operator_reconcile_duration_seconds_count[{RATE}]))",
            unit="ops",
            span=4,
        ),
        lines(
            "Reconciliation duration",
            *((f"histogram_quantile({q}, sum by (le) ({DURATIONS}))", f"p{q * 100:.0f}") for q in (0.5, 0.95, 0.99)),
            unit="s",
            help="Time to reconcile one job, including writes.",
        ),
        lines("Queue depth", ("sum(hftitan_operator_queue_depth)", "jobs"), help="Jobs that wait for reconciliation."),
        lines(
            "Failed reconciliations",
            (f"sum by (reason) (rate(hftitan_operator_reconcile_errors_total[{RATE}]))", "{{reason}}"),
            unit="ops",
            help="The operator retries them. A few write conflicts are normal.",
        ),
        lines(
            "API requests by method",
            (f"sum by (method) (rate(hftitan_operator_api_requests_total[{RATE}]))", "{{method}}"),
            unit="reqps",
        ),
        lines(
            "API requests by status code",
            (f"sum by (code) (rate(hftitan_operator_api_requests_total[{RATE}]))", "{{code}}"),
            unit="reqps",
            help="Code 0: no response.",
        ),
        lines(
            "Job events",
            (f"sum by (type, reason) (rate(hftitan_operator_job_events_total[{RATE}]))", "{{type}}: {{reason}}"),
            unit="ops",
            help="Kubernetes events that the operator created for jobs.",
        ),
        lines(
            "Memory",
            (f"process_resident_memory_bytes * {PROCESS}", "{{instance}}"),
            unit="bytes",
            help="Resident set size.",
        ),
        lines(
            "CPU",
            (f"rate(process_cpu_seconds_total[{RATE}]) * {PROCESS}", "{{instance}}"),
            unit="percentunit",
            help="100 % is one core.",
        ),
        lines(
            "Leader by replica",
            ("max by (instance) (hftitan_operator_leader)", "{{instance}}"),
            help="1 for the leader, 0 for the other replicas.",
        ),
    ]
    for panel in panels:
        made.with_panel(panel)
    return made
