"""The operator: does one lead, does it keep up, does the API server answer."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from parts import RATE, dashboard_of, lines, number

PASSES = f"rate(hftitan_operator_reconcile_duration_seconds_bucket[{RATE}])"
PROCESS = "on (instance, job) group_left () max by (instance, job) (hftitan_operator_info)"
"""The operator's own among all processes that Prometheus knows."""


def health() -> dashboard.Dashboard:
    made = dashboard_of("hftitan-operator", "HFTitanJob / Operator", "Leader, passes, errors, requests, resources.")
    panels = [
        number("Replicas", "count(hftitan_operator_info)", span=4),
        number(
            "Leaders", "sum(hftitan_operator_leader)", help="One for each set of namespaces that is served.", span=4
        ),
        number("Version", "max by (version) (hftitan_operator_info)", legend="{{version}}", span=4),
        number("Jobs", "sum(hftitan_jobs)", span=4),
        number("Queue", "sum(hftitan_operator_queue_depth)", help="Jobs that wait to be looked at.", span=4),
        number("Passes/s", f"sum(rate(hftitan_operator_reconcile_duration_seconds_count[{RATE}]))", unit="ops", span=4),
        lines(
            "Duration of a pass",
            *((f"histogram_quantile({q}, sum by (le) ({PASSES}))", f"{q:.0%}") for q in (0.5, 0.95, 0.99)),
            unit="s",
            help="Over one job, its writes included.",
        ),
        lines("Queue", ("sum(hftitan_operator_queue_depth)", "jobs"), help="Jobs that wait to be looked at."),
        lines(
            "Failed passes",
            (f"sum by (reason) (rate(hftitan_operator_reconcile_errors_total[{RATE}]))", "{{reason}}"),
            unit="ops",
            help="They are repeated. Some conflicts are normal: that is how two writers find out about each other.",
        ),
        lines(
            "Requests to the API server",
            (f"sum by (method) (rate(hftitan_operator_api_requests_total[{RATE}]))", "{{method}}"),
            unit="reqps",
        ),
        lines(
            "Requests by answer",
            (f"sum by (code) (rate(hftitan_operator_api_requests_total[{RATE}]))", "{{code}}"),
            unit="reqps",
            help="Code 0: no answer.",
        ),
        lines(
            "Events told of jobs",
            (f"sum by (type, reason) (rate(hftitan_operator_job_events_total[{RATE}]))", "{{type}}: {{reason}}"),
            unit="ops",
        ),
        lines("Memory", (f"process_resident_memory_bytes * {PROCESS}", "{{instance}}"), unit="bytes", help="Resident."),
        lines(
            "Processor", (f"rate(process_cpu_seconds_total[{RATE}]) * {PROCESS}", "{{instance}}"), unit="percentunit"
        ),
        lines(
            "Leader", ("max by (instance) (hftitan_operator_leader)", "{{instance}}"), help="1 for the one that acts."
        ),
    ]
    for panel in panels:
        made.with_panel(panel)
    return made
