"""All jobs of the data source: who trains, who waits, who failed."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import common as kinds
from parts import RATE, bars, dashboard_of, jobs_table, lines, number

BY_JOB = "by (job_namespace, job_name)"
WAITING = 'phase=~"Pending|Starting|Restarting"'


def since(what: str) -> str:
    return f"(time() - max {BY_JOB} ({what}))"


def fleet() -> dashboard.Dashboard:
    made = dashboard_of("hftitan-fleet", "HFTitanJob / Fleet", "All jobs: phases, GPUs, queue, restarts, failures.")
    panels = [
        number("Running", 'sum(hftitan_jobs{phase="Running"})', help="Jobs that take steps."),
        number("Waiting", f"sum(hftitan_jobs{{{WAITING}}})", help="Jobs that want to run and do not yet."),
        number("Suspended", 'sum(hftitan_jobs{phase="Suspended"})', help="By their owner, or by a queue."),
        number("Failed", 'sum(hftitan_jobs{phase="Failed"})', help="Failed jobs that nobody has deleted."),
        number("GPUs asked for", 'sum(hftitan_jobs_gpus{phase!~"Succeeded|Failed|Suspended"})'),
        number("GPUs waited for", f"sum(hftitan_jobs_gpus{{{WAITING}}})", help="Of the jobs that wait."),
        number("Tokens/s", f"sum(max {BY_JOB} (hftitan_tokens_per_second))", help="All jobs that run."),
        number(
            "Goodput",
            'avg(hftitan_job_goodput_ratio and on (job_namespace, job_name) hftitan_job_phase{phase="Running"})',
            unit="percentunit",
            help="Mean over the running jobs: share of their active time spent on steps that were kept.",
        ),
        lines("Jobs by phase", ("sum by (phase) (hftitan_jobs)", "{{phase}}"), stacked=True),
        lines(
            "GPUs asked for, by phase",
            ('sum by (phase) (hftitan_jobs_gpus{phase!~"Succeeded|Failed"})', "{{phase}}"),
            stacked=True,
        ),
        lines(
            "Restarts by cause",
            (f"sum by (reason) (increase(hftitan_operator_restarts_total[{RATE}])) > 0", "{{reason}}"),
            help="New attempts of whole gangs.",
        ).draw_style(kinds.GraphDrawStyle.BARS),
        jobs_table(
            "Queue",
            f'sum by (job_namespace, job_name, phase) (hftitan_job_phase{{{WAITING[:-1]}|Suspended"}})'
            f" * on (job_namespace, job_name) group_left () {since('hftitan_job_created_timestamp_seconds')}",
            "since its creation",
            unit="s",
            help="Jobs that do not run and are not over.",
        ),
        jobs_table(
            "Failed jobs",
            "sum by (job_namespace, job_name, reason) (hftitan_job_failure_info)"
            f" * on (job_namespace, job_name) group_left () {since('hftitan_job_end_timestamp_seconds')}",
            "ended ago",
            unit="s",
            help="kubectl describe htj has the message and the events.",
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
            help="Share of the active time spent on steps that were kept, worst first.",
        ),
        bars(
            "Restarts by job",
            f"topk(10, max {BY_JOB} (hftitan_job_restarts_total))",
            "{{job_namespace}}/{{job_name}}",
            help="New attempts so far, free ones included; the ten with most.",
        ),
    ]
    for panel in panels:
        made.with_panel(panel)
    return made
