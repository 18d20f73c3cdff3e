"""The fleet dashboard: which jobs of the data source run, wait or failed."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import common as kinds
from parts import bars, colored_column, colored_series, dashboard_of, jobs_table, lines, number

BY_JOB = "by (job_namespace, job_name)"
WAITING = 'phase=~"Pending|Starting|Restarting"'
RESTARTS = "hftitan_operator_restarts_total"
# The increase from one point to the next, so that each restart is exactly one bar. `increase` over $__rate_interval
# would show a restart at several points, since its windows overlap. `increase` is used only where the difference is
# unusable: for a new series, after a gap, and after a counter reset.
NEW_RESTARTS = f"({RESTARTS} - {RESTARTS} offset $__interval >= 0) or increase({RESTARTS}[$__interval])"


def since(timestamp: str) -> str:
    return f"(time() - max {BY_JOB} ({timestamp}))"


def fleet() -> dashboard.Dashboard:
    made = dashboard_of("hftitan-fleet", "HFTitanJob / Fleet", "All jobs: phases, GPUs, queue, restarts, failures.")
    panels = [
        number("Running", 'sum(hftitan_jobs{phase="Running"})', help="Jobs in phase Running."),
        number("Waiting", f"sum(hftitan_jobs{{{WAITING}}})", help="Jobs in phase Pending, Starting or Restarting."),
        number("Suspended", 'sum(hftitan_jobs{phase="Suspended"})', help="Jobs suspended by a user or a queue."),
        number("Failed", 'sum(hftitan_jobs{phase="Failed"})', help="Failed jobs that are not deleted yet."),
        number(
            "GPUs requested",
            'sum(hftitan_jobs_gpus{phase!~"Succeeded|Failed|Suspended"})',
            help="By running and waiting jobs.",
        ),
        number("GPUs pending", f"sum(hftitan_jobs_gpus{{{WAITING}}})", help="Requested by waiting jobs."),
        number("Tokens/s", f"sum(max {BY_JOB} (hftitan_tokens_per_second))", help="Sum over all running jobs."),
        number(
            "Goodput",
            'avg(hftitan_job_goodput_ratio and on (job_namespace, job_name) hftitan_job_phase{phase="Running"})',
            unit="percentunit",
            help="Share of active time spent on steps that were kept. Mean over the running jobs.",
        ),
        colored_series(lines("Jobs by phase", ("sum by (phase) (hftitan_jobs)", "{{phase}}"), stacked=True)),
        colored_series(
            lines(
                "GPUs requested by phase",
                ('sum by (phase) (hftitan_jobs_gpus{phase!~"Succeeded|Failed"})', "{{phase}}"),
                stacked=True,
            )
        ),
        lines(
            "Restarts by reason",
            (f"sum by (reason) ({NEW_RESTARTS}) > 0", "{{reason}}"),
            help="Gang restarts (new attempts). Each restart is one bar.",
        )
        .draw_style(kinds.GraphDrawStyle.BARS)
        .fill_opacity(100),
        colored_column(
            jobs_table(
                "Waiting and suspended jobs",
                f'sum by (job_namespace, job_name, phase) (hftitan_job_phase{{{WAITING[:-1]}|Suspended"}})'
                f" * on (job_namespace, job_name) group_left () {since('hftitan_job_created_timestamp_seconds')}",
                "age",
                unit="s",
                help="Jobs that neither run nor have finished.",
            )
        ),
        jobs_table(
            "Failed jobs",
            "sum by (job_namespace, job_name, reason) (hftitan_job_failure_info)"
            f" * on (job_namespace, job_name) group_left () {since('hftitan_job_end_timestamp_seconds')}",
            "time since failure",
            unit="s",
            help="kubectl describe htj shows the message and the events.",
        ),
        lines(
            "Tokens/s by job",
            (f"max {BY_JOB} (hftitan_tokens_per_second)", "{{job_namespace}}/{{job_name}}"),
            stacked=True,
        ),
        bars(
            "Goodput by job",
            f"sort(max {BY_JOB} (hftitan_job_goodput_ratio))",
            "{{job_namespace}}/{{job_name}}",
            unit="percentunit",
            help="Share of active time spent on steps that were kept, lowest first.",
        ),
        bars(
            "Restarts by job",
            f"topk(10, max {BY_JOB} (hftitan_job_restarts_total))",
            "{{job_namespace}}/{{job_name}}",
            help="The ten jobs with the most gang restarts. Includes restarts that do not count against maxRestarts.",
        ),
    ]
    for panel in panels:
        made.with_panel(panel)
    return made
