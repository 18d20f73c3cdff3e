"""The job dashboard: loss, throughput, differences between ranks and nodes, restarts of one job."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import common as kinds
from parts import RATE, Moments, bars, choice, colored_series, dashboard_of, lines, number

JOB = '{job_namespace="$namespace", job_name="$job"}'
STARTED, SAVED = (
    f"max(hftitan_job_attempt_start_timestamp_seconds{JOB})",
    f"max(hftitan_checkpoint_timestamp_seconds{JOB})",
)


def rate(seconds: str, by: str = "") -> str:
    return f"sum{by} (rate({seconds}{JOB}[{RATE}]))"


def share(seconds: str) -> str:
    """Share of wall time, mean over the nodes. `seconds`: a histogram's sum or a counter of seconds."""
    return f"avg(rate({seconds}{JOB}[{RATE}]))"


def mean(histogram: str, by: str = "") -> str:
    return f"{rate(f'{histogram}_sum', by)} / {rate(f'{histogram}_count', by)}"


def job() -> dashboard.Dashboard:
    made = dashboard_of("hftitan-job", "HFTitanJob / Job", "One job: loss, throughput, time breakdown, restarts.")
    made.with_variable(choice("namespace", "Namespace", "label_values(hftitan_job_phase, job_namespace)"))
    made.with_variable(choice("job", "Job", 'label_values(hftitan_job_phase{job_namespace="$namespace"}, job_name)'))
    made.annotation(Moments("Attempt started", STARTED, "orange"))
    made.annotation(Moments("Checkpoint", SAVED, "green"))
    for title, panels in (("", summary()), ("Training", training()), ("Throughput", throughput()),
                          ("Ranks and nodes", ranks()), ("Restarts, checkpoints, data", events())):  # fmt: skip
        if title:
            made.with_row(dashboard.Row(title))
        for panel in panels:
            made.with_panel(panel)
    return made


def summary() -> list[object]:
    return [
        colored_series(number("Phase", f"sum by (phase) (hftitan_job_phase{JOB})", legend="{{phase}}")).color_mode(
            kinds.BigValueColorMode.VALUE
        ),
        number("Trainer phase", f"max by (phase) (hftitan_trainer_phase{JOB}) == 1", legend="{{phase}}"),
        number("Step", f"max(hftitan_step{JOB})"),
        number("Total steps", f"max(hftitan_target_steps{JOB})"),
        number("Time remaining", f"max(hftitan_eta_seconds{JOB})", unit="s", help="Estimated from the mean step time."),
        number(
            "Goodput",
            f"max(hftitan_job_goodput_ratio{JOB})",
            unit="percentunit",
            help="Share of active time spent on steps that were kept.",
        ),
        number("Attempt", f"max(hftitan_attempt{JOB})", help="Number of the current attempt, from 1."),
        number("Last checkpoint", f"max(hftitan_checkpoint_step{JOB})", help="Step of the newest complete checkpoint."),
        number(
            "Model and mesh",
            f"max by (model, mesh) (hftitan_trainer_info{JOB})",
            legend="{{model}}, {{mesh}}",
            span=15,
        ),
        number("Trained tokens", f"max(hftitan_tokens_total{JOB})", help="Includes earlier attempts."),
        number("Documents read", f"max(hftitan_documents_total{JOB})", help="Includes earlier attempts."),
        number("Last validation", f"max(hftitan_validation_step{JOB})", help="Step of the newest validation."),
    ]


def training() -> list[object]:
    return [
        lines(
            "Loss",
            (f"max(hftitan_loss{JOB})", "training"),
            (f"max(hftitan_validation_loss{JOB})", "validation"),
            help="Mean over all tokens and ranks.",
        ),
        lines("Gradient norm", (f"max(hftitan_grad_norm{JOB})", "before clipping"), log=True),
        lines("Learning rate", (f"max(hftitan_learning_rate{JOB})", "learning rate"), unit="sci"),
    ]


def throughput() -> list[object]:
    return [
        lines("Tokens/s", (f"max(hftitan_tokens_per_second{JOB})", "all ranks")),
        lines("Tokens/s per device", (f"avg(hftitan_device_tokens_per_second{JOB})", "mean over nodes")),
        lines(
            "MFU",
            (f"avg(hftitan_mfu_ratio{JOB})", "mean over nodes"),
            unit="percentunit",
            help="Model FLOPs utilisation. No data if the device's peak throughput is unknown, for example on CPUs.",
        ),
        lines(
            "Time breakdown",
            (f"{share('hftitan_step_duration_seconds_sum')} - {share('hftitan_data_wait_seconds_total')}", "compute"),
            (share("hftitan_data_wait_seconds_total"), "data wait"),
            (share("hftitan_checkpoint_save_duration_seconds_sum"), "checkpoint"),
            (share("hftitan_validation_duration_seconds_sum"), "validation"),
            unit="percentunit",
            stacked=True,
            help="Share of wall time, mean over nodes. The rest up to 100 % is startup, export, or a missing pod.",
        ),
        lines(
            "Step time",
            (mean("hftitan_step_duration_seconds"), "mean"),
            ("histogram_quantile(0.95, " + rate("hftitan_step_duration_seconds_bucket", " by (le)") + ")", "p95"),
            unit="s",
        ),
        lines(
            "Peak memory of local rank 0",
            (f"max by (node_index) (hftitan_memory_peak_bytes{JOB})", "node {{node_index}}"),
            unit="bytes",
        ),
    ]


def ranks() -> list[object]:
    return [
        lines(
            "Loss across ranks",
            (f"max(hftitan_loss_max{JOB})", "highest data-parallel rank"),
            (f"max(hftitan_loss{JOB})", "mean"),
        ),
        lines(
            "Step time by node",
            (mean("hftitan_step_duration_seconds", " by (node_index)"), "node {{node_index}}"),
            unit="s",
        ),
        lines(
            "Data wait by node",
            (rate("hftitan_data_wait_seconds_total", " by (node_index)"), "node {{node_index}}"),
            unit="percentunit",
            help="A node far above the others has a slow disk or network. All nodes wait for it.",
        ),
    ]


def events() -> list[object]:
    return [
        lines(
            "Restarts",
            (f"max(hftitan_job_restarts_total{JOB})", "gang restarts"),
            (f"max(hftitan_worker_restarts{JOB})", "in-place restarts in this attempt"),
        ),
        lines(
            "Steps since last checkpoint",
            (f"max(hftitan_step{JOB}) - max(hftitan_checkpoint_step{JOB} or hftitan_resumed_step{JOB})", "steps"),
            help="A failure now would lose these steps.",
        ),
        lines(
            "Checkpoint save time",
            (mean("hftitan_checkpoint_save_duration_seconds"), "training paused"),
            unit="s",
            help="Time for which training pauses during one save.",
        ),
        bars(
            "Startup time by stage",
            f"max by (stage) (hftitan_startup_duration_seconds{JOB})",
            "{{stage}}",
            unit="s",
            help="Latest start of the trainer, up to its first step.",
        ),
        lines("Epochs", (f"max(hftitan_epoch{JOB})", "epochs"), help="Passes over the dataset so far."),
        lines(
            "Documents truncated or dropped",
            (f"max(hftitan_documents_truncated_total{JOB})", "truncated"),
            (f"max by (reason) (hftitan_documents_dropped_total{JOB})", "dropped: {{reason}}"),
        ),
    ]
