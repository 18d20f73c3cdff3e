"""Runs one rank of a job: `torchrun -m hftitan_trainer`, or `python -m hftitan_trainer` for a single process.

Reads the environment variables of hftitan_api.wire. Exit codes: 0 completed, 143 stopped by a signal
(signals.EXIT_PREEMPTED), 1 any failure. The exit report in the termination log has the reason. The signal handlers and
the HTTP server start before torch is imported, since that import takes most of the start-up.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from hftitan_api.wire import ENV_TERMINATION_LOG, ExitReport, TrainerSpec
from hftitan_trainer.checkpoint import hub
from hftitan_trainer.data.documents import list_files
from hftitan_trainer.process import signals
from hftitan_trainer.process.environment import Environment, default_rendezvous, process_age, seconds_since_launch
from hftitan_trainer.process.report import Reporter, redact
from hftitan_trainer.telemetry import logs
from hftitan_trainer.telemetry.journal import FILE_NAME, Journal
from hftitan_trainer.telemetry.run_observer import RunObserver
from hftitan_trainer.telemetry.serve import Scrapes, serve
from hftitan_trainer.telemetry.trackers import Trackers, check_packages

if TYPE_CHECKING:
    from hftitan_trainer.telemetry.observer import Outcome

logger = logging.getLogger(__name__)

EXPORT_FOLDER = "export"


class RankProcess:
    """The lifetime of this process, from start to exit report."""

    def __init__(self) -> None:
        self.launched = seconds_since_launch()
        default_rendezvous(os.environ)
        self.rank = int(os.environ["RANK"])
        logs.configure(self.rank)
        log = os.environ.get(ENV_TERMINATION_LOG)
        self.reporter = Reporter(Path(log) if log else None)
        # A new pod has an empty log. A report is here only after an in-place restart, or if another rank of this start
        # has already failed. The second kind is younger than this process: torchrun starts all ranks at once, and none
        # fails before its imports.
        if os.environ["LOCAL_RANK"] == "0":
            self.reporter.clear_older(time.time() - process_age(os.getpid()))
        self.observer: RunObserver | None = None
        self.scrapes = Scrapes()
        self.pushed_to: str | None = None
        self.on_first_node = False
        self.other_pods_ended = False
        self.stop = signals.StopFlag(self._stopped_by_signal)
        self.stop.install()

    def run(self) -> NoReturn:
        """Train, write an exit report in every case, and exit."""
        try:
            outcome = self._train()
        except BaseException as error:
            self._fail(error)
        if outcome.kind == "stopped":
            self._preempted(
                f"{self.stop.signal_name or 'signal on another rank'}: saved step {outcome.step} and stopped"
            )
        self._completed()

    def _train(self) -> Outcome:
        env = Environment.read(os.environ)
        self.on_first_node = env.node_index == 0
        spec = env.spec()
        self.observer = observer = RunObserver(
            spec,
            env,
            journal=Journal(env.output / FILE_NAME, env.attempt) if env.rank == 0 else None,
            stopping=self.stop,
            launched=self.launched,
        )
        if env.local_rank == 0:
            port = spec.monitoring.port
            serve(observer, env.pod_ip, port, progress=env.node_index == 0, scrapes=self.scrapes)
        check_paths(spec)
        check_packages(spec)
        # The pod of node 0 pushes, while rank 0 may be in any pod: the other pods cannot outlive the torchrun agent of
        # node 0.
        push = spec.checkpoint.push_to_hub if (env.node_index, env.local_rank) == (0, 0) else None
        if push is not None:
            hub.prepare(push, hub.client())

        import transformers.configuration_utils  # noqa: F401  (imports torch: counted as import, not as fetch)

        from hftitan_trainer.model.folder import fetch_model

        observer.stage("import")
        model = fetch_model(spec.model)
        observer.fetched(model.revision)
        observer.stage("fetch")

        from hftitan_trainer.process.device import use_device

        use_device(spec.mesh.device)

        from hftitan_trainer.bridge import build_config
        from hftitan_trainer.checkpoint.manager import checkpoint_config
        from hftitan_trainer.data.layout import rows_of_a_step
        from hftitan_trainer.data.loader import dataloader_config
        from hftitan_trainer.data.tokenizer import tokenizer_config
        from hftitan_trainer.data.validation import Validation
        from hftitan_trainer.engine import HFTitanTrainer

        observer.stage("import")
        config = build_config(
            spec,
            model,
            env.output,
            dataloader=dataloader_config(spec.dataset, rows=rows_of_a_step(spec), seed=spec.training.seed),
            tokenizer=tokenizer_config(spec.model.trust_remote_code),
            checkpoint=checkpoint_config(spec, initial_load_path=str(model.path) if model.pretrained else None),
        )
        trainer = HFTitanTrainer(config, observer)
        trainer.checkpointer.on_complete = observer.complete
        if spec.validation is not None:
            trainer.validation = Validation(trainer, spec, trainer.observer, trainer.agreed_to_stop)
        if env.rank == 0:
            observer.trackers = Trackers.open(spec, env.output)
        observer.stage("build")

        self.stop.training(True)
        outcome = trainer.train()
        self.stop.training(False)
        if outcome.kind == "completed" and spec.checkpoint.export_hf and not self.stop():
            from hftitan_trainer.checkpoint.card import TrainingResult, model_card
            from hftitan_trainer.checkpoint.export import export_model

            observer.phase("exporting")
            folder = env.output / EXPORT_FOLDER
            card = None
            if env.rank == 0:
                card = model_card(spec, model, TrainingResult.of_journal(env.output / FILE_NAME, outcome.step))
            export_model(trainer, folder, spec.checkpoint.export_dtype, card=card)
            observer.exported(folder)
        trainer.close()
        _wait_for_all()
        if outcome.kind == "completed" and self.stop():
            # The next attempt only has to export.
            self._preempted(f"{self.stop.signal_name}: stopped after the last step, before the export")
        if outcome.kind == "completed" and push is not None:
            # One rank pushes, after the last collective, so that the other ranks can exit without waiting.
            self.other_pods_ended = spec.mesh.nodes > 1
            observer.phase("pushing")
            self.pushed_to = hub.upload(
                env.output / EXPORT_FOLDER,
                push,
                hub.client(),
                message=f"{spec.job_name}: step {outcome.step}",
                moved=lambda: observer.phase("pushing"),
            )
            observer.pushed(self.pushed_to)
        return outcome

    # --- exits ------------------------------------------------------------------------------------------------

    def _completed(self) -> NoReturn:
        assert self.observer is not None
        if os.environ["LOCAL_RANK"] == "0":
            message = f"all {self.observer.newest_step} steps done"
            if self.pushed_to is not None:
                message += f", pushed as {self.pushed_to}"
            self.reporter.write(self._report("Completed", message, retryable=False))
        self.observer.phase("done")
        self.observer.ended("Completed")
        self.scrapes.wait_for_one_more()
        _exit(0)

    def _preempted(self, message: str) -> NoReturn:
        self.reporter.write(self._report("Preempted", message, retryable=True))
        logger.warning("%s", message)
        if self.observer is not None:
            self.observer.ended("Preempted", message)
        signals.stop_agent()
        _exit(signals.EXIT_PREEMPTED)

    def _stopped_by_signal(self, signal_name: str, lost_sibling: bool) -> None:
        """Report a signal outside the training loop. Runs in the signal thread; the process then exits."""
        phase = self.observer.progress().phase if self.observer is not None else "starting"
        if lost_sibling and phase != "pushing":  # in this phase the other processes exit normally
            message = (
                f"another process of this pod died without an exit report while {phase}; check whether it was killed "
                "or ran out of memory"
            )
            self.reporter.write(self._report("InternalError", message, retryable=True))
            return
        self.reporter.write(self._report("Preempted", f"{signal_name} while {phase}", retryable=True))
        signals.stop_agent()

    def _fail(self, error: BaseException) -> NoReturn:
        report = self.reporter.write_failure(error, self._report("InternalError", "", retryable=True), over=self.stop)
        trace = "".join(traceback.format_exception(error))
        # A user error needs one line; any other error needs its traceback.
        logger.error("%s: %s%s", report.reason, report.message, "" if report.reason == "UserError" else f"\n{trace}")
        if self.observer is not None:
            self.observer.ended(report.reason, redact(report.message))
        if not report.retryable or self.other_pods_ended:  # restarted workers would wait for exited pods
            signals.stop_agent()
        _exit(1)

    def _report(self, reason: str, message: str, *, retryable: bool) -> ExitReport:
        seen = self.observer
        return ExitReport(
            reason=reason,  # type: ignore[arg-type]
            message=message,
            retryable=retryable,
            rank=self.rank,
            step=seen.newest_step if seen else 0,
            checkpoint_step=seen.checkpoint_step if seen else None,
            export_path=seen.export_path if seen else None,
            model_revision=seen.model_revision if seen else None,
            # The operator's last poll of /progress was before the last steps.
            progress=seen.progress().model_copy(update={"export_path": None, "model_revision": None})
            if seen and self.on_first_node
            else None,
        )


def check_paths(spec: TrainerSpec) -> None:
    """Check the dataset paths before any heavy import. Raises UserError."""
    if spec.dataset.path is not None:
        list_files(Path(spec.dataset.path), "spec.dataset")
    if spec.validation is not None and spec.validation.dataset.path is not None:
        list_files(Path(spec.validation.dataset.path), "spec.validation.dataset")


def _wait_for_all() -> None:
    """Wait for all ranks, so that no rank exits before the others are done."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()


def _exit(code: int) -> NoReturn:
    """Exit at once: the destructors of communicators can hang when a peer is gone."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> NoReturn:
    """Run this rank."""
    RankProcess().run()


if __name__ == "__main__":
    main()
