"""TensorBoard and W&B: the values they get, and that their failures do not stop training. Only event files need
torch."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import harness
import pytest

from hftitan_api.wire import TrainerSpec
from hftitan_trainer.process.errors import UserError
from hftitan_trainer.telemetry import trackers
from hftitan_trainer.telemetry.observer import DataSeen, StepReport
from hftitan_trainer.telemetry.trackers import Trackers, check_packages, step_values


def spec(**monitoring: object) -> TrainerSpec:
    return TrainerSpec.model_validate(harness.trainer_spec("/m", monitoring=monitoring))


REPORT = StepReport(
    step=3, steps=9, loss=2.5, max_loss=2.75, grad_norm=1.0, lr=0.1, tokens_per_second=200.0, tokens_seen=300,
    step_seconds=0.5, data_seconds=0.1, data=DataSeen(epoch=0.25),
)  # fmt: skip


class Broken:
    """A tracker that fails at every call."""

    def __init__(self) -> None:
        self.calls = 0

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.calls += 1
        raise OSError(f"no space left; sent with {KEY}")

    def close(self) -> None:
        raise OSError("gone")


KEY = "0123456789abcdef"


def test_no_tracker_is_opened_by_default(tmp_path: Path) -> None:
    made = Trackers.open(spec(), tmp_path)
    made.log(1, {"a": 1.0})
    made.close()
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_has_the_values_of_a_step_without_unknown_ones(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    made = Trackers.open(spec(tensorboard=True), tmp_path)
    made.log(3, step_values(REPORT))
    made.log(3, {"validation/loss": 1.5})
    made.close()
    seen = EventAccumulator(str(tmp_path / "tensorboard"))
    seen.Reload()
    values = {tag: (seen.Scalars(tag)[0].step, seen.Scalars(tag)[0].value) for tag in seen.Tags()["scalars"]}
    assert values["train/loss"] == (3, 2.5)
    assert values["train/epoch"] == (3, 0.25)
    assert values["validation/loss"] == (3, 1.5)
    assert "speed/mfu" not in values


def test_a_failing_tracker_is_logged_once_without_secrets(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    broken = Broken()
    made = Trackers([broken])
    for step in range(3):
        made.log(step, {"a": 1.0})
    made.close()
    assert broken.calls == 1
    assert "stopped writing to Broken: OSError: no space left; sent with [redacted]" in caplog.text
    Trackers([broken]).close()
    assert "Broken: the last values may be missing" in caplog.text


def test_wandb_that_fails_to_start_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)

    def refused(*_args: object) -> None:
        raise RuntimeError(f"401 for {KEY}")

    monkeypatch.setattr(trackers, "WandB", refused)
    with caplog.at_level(logging.WARNING):
        Trackers.open(spec(wandbSecret={"name": "w"}), tmp_path).log(1, {"a": 1.0})
    assert "W&B failed to start and gets no metrics: RuntimeError: 401 for [redacted]" in caplog.text


def test_a_missing_package_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    check_packages(spec(tensorboard=True, wandbSecret={"name": "w"}))
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    check_packages(spec())
    with pytest.raises(UserError, match=r"spec\.monitoring\.tensorboard: the image has no Python package tensorboard"):
        check_packages(spec(tensorboard=True))
    with pytest.raises(UserError, match=r"spec\.monitoring\.wandbSecret: the image has no Python package wandb"):
        check_packages(spec(wandbSecret={"name": "w"}))
