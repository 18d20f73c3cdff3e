"""One job: does it learn, how fast, where does the time go, what interrupted it."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from parts import RATE, Moments, bars, choice, dashboard_of, lines, number

JOB = '{job_namespace="$namespace", job_name="$job"}'
STARTED, SAVED = (
    f"max(hftitan_job_attempt_start_timestamp_seconds{JOB})",
    f"max(hftitan_checkpoint_timestamp_seconds{JOB})",
)


def rate(seconds: str, by: str = "") -> str:
    return f"sum{by} (rate({seconds}{JOB}[{RATE}]))"


def share(seconds: str) -> str:
    """Of each second, the mean over the nodes; a histogram's sum or a counter of seconds."""
    return f"avg(rate({seconds}{JOB}[{RATE}]))"


def mean(histogram: str, by: str = "") -> str:
    return f"{rate(f'{histogram}_sum', by)} / {rate(f'{histogram}_count', by)}"


def job() -> dashboard.Dashboard:
    made = dashboard_of("hftitan-job", "HFTitanJob / Job", "One job: loss, speed, where the time goes, interruptions.")
    made.with_variable(choice("namespace", "Namespace", "label_values(hftitan_job_phase, job_namespace)"))
    made.with_variable(choice("job", "Job", 'label_values(hftitan_job_phase{job_namespace="$namespace"}, job_name)'))
    made.annotation(Moments("Attempt began", STARTED, "orange"))
    made.annotation(Moments("Checkpoint", SAVED, "green"))
    for title, panels in (("", summary()), ("Learning", learning()), ("Speed", speed()), ("Spread", spread()),
                          ("Interruptions and data", events())):  # fmt: skip
        if title:
            made.with_row(dashboard.Row(title))
        for panel in panels:
            made.with_panel(panel)
    return made


def summary() -> list[object]:
    return [
        number("Phase", f"sum by (phase) (hftitan_job_phase{JOB})", legend="{{phase}}"),
        number("Trainer", f"max by (phase) (hftitan_trainer_phase{JOB}) == 1", legend="{{phase}}"),
        number("Step", f"max(hftitan_step{JOB})"),
        number("of", f"max(hftitan_target_steps{JOB})"),
        number("Left", f"max(hftitan_eta_seconds{JOB})", unit="s", help="Estimated from the mean step time."),
        number("Goodput", f"max(hftitan_job_goodput_ratio{JOB})", unit="percentunit"),
        number("Attempts", f"max(hftitan_attempt{JOB})"),
        number("Newest checkpoint", f"max(hftitan_checkpoint_step{JOB})", help="Its step."),
        number(
            "Model",
            f"max by (model, mesh) (hftitan_trainer_info{JOB})",
            legend="{{model}}, {{mesh}}",
            span=15,
            help="What is trained, and on which mesh.",
        ),
        number("Tokens", f"max(hftitan_tokens_total{JOB})", help="Trained on, earlier attempts included."),
        number("Documents", f"max(hftitan_documents_total{JOB})", help="Read, earlier attempts included."),
        number("Newest validation", f"max(hftitan_validation_step{JOB})", help="Its step."),
    ]


def learning() -> list[object]:
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


def speed() -> list[object]:
    return [
        lines("Tokens/s", (f"max(hftitan_tokens_per_second{JOB})", "all ranks")),
        lines("Tokens/s of a device", (f"avg(hftitan_device_tokens_per_second{JOB})", "mean")),
        lines(
            "MFU",
            (f"avg(hftitan_mfu_ratio{JOB})", "mean of all nodes"),
            unit="percentunit",
            help="Model FLOPs utilisation; absent where the device's peak is not known, as on processors.",
        ),
        lines(
            "Where the time goes",
            (f"{share('hftitan_step_duration_seconds_sum')} - {share('hftitan_data_wait_seconds_total')}", "computing"),
            (share("hftitan_data_wait_seconds_total"), "waiting for data"),
            (share("hftitan_checkpoint_save_duration_seconds_sum"), "saving"),
            (share("hftitan_validation_duration_seconds_sum"), "validating"),
            unit="percentunit",
            stacked=True,
            help="Mean over the nodes. What lacks to 100 % is start-up, export, or a pod that is gone.",
        ),
        lines(
            "Step time",
            (mean("hftitan_step_duration_seconds"), "mean"),
            (
                "histogram_quantile(0.95, " + rate("hftitan_step_duration_seconds_bucket", " by (le)") + ")",
                "95 %",
            ),
            unit="s",
        ),
        lines(
            "Peak memory of local rank 0",
            (f"max by (node_index) (hftitan_memory_peak_bytes{JOB})", "node {{node_index}}"),
            unit="bytes",
        ),
    ]


def spread() -> list[object]:
    return [
        lines(
            "Loss over the ranks",
            (f"max(hftitan_loss_max{JOB})", "largest mean of a data-parallel rank"),
            (f"max(hftitan_loss{JOB})", "mean"),
        ),
        lines(
            "Step time by node",
            (mean("hftitan_step_duration_seconds", " by (node_index)"), "node {{node_index}}"),
            unit="s",
        ),
        lines(
            "Waiting for data by node",
            (rate("hftitan_data_wait_seconds_total", " by (node_index)"), "node {{node_index}}"),
            unit="percentunit",
            help="A node far above the others has a slow disk or network, and all wait for it.",
        ),
    ]


def events() -> list[object]:
    return [
        lines(
            "Restarts",
            (f"max(hftitan_job_restarts_total{JOB})", "of the gang"),
            (f"max(hftitan_worker_restarts{JOB})", "in place, in this attempt"),
        ),
        lines(
            "Steps that a failure now would cost",
            (f"max(hftitan_step{JOB}) - max(hftitan_checkpoint_step{JOB} or hftitan_resumed_step{JOB})", "steps"),
            help="Done since the newest complete checkpoint.",
        ),
        lines(
            "Time to save",
            (mean("hftitan_checkpoint_save_duration_seconds"), "training stands still"),
            unit="s",
        ),
        bars(
            "Start-up by stage",
            f"max by (stage) (hftitan_startup_duration_seconds{JOB})",
            "{{stage}}",
            unit="s",
            help="Of the newest life, to its first step.",
        ),
        lines("Passes over the data", (f"max(hftitan_epoch{JOB})", "epochs")),
        lines(
            "Documents cut or left out",
            (f"max(hftitan_documents_truncated_total{JOB})", "cut"),
            (f"max by (reason) (hftitan_documents_dropped_total{JOB})", "left out: {{reason}}"),
        ),
    ]
