"""Progress and exit reports from untrusted images never make an invalid status."""

import json

import pytest
from pydantic import ValidationError

from hftitan_api.wire import ExitReport, Progress

PROGRESS = {"attempt": 1, "phase": "training", "step": 3, "steps": 10, "updated": 1_800_000_000.0}
REPORT = {"reason": "InternalError", "retryable": True, "step": 3}


@pytest.mark.parametrize("field", ["loss", "gradNorm", "lr", "tokensPerSecond", "mfu", "stepSeconds", "etaSeconds"])
@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_nan_and_infinity_become_unset(field, value):
    text = json.dumps({**PROGRESS, field: "?"}).replace('"?"', value)
    shown = Progress.model_validate_json(text).to_dict()
    assert field not in shown
    json.dumps(shown, allow_nan=False)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("step", -1),
        ("step", 10**30),
        ("steps", 2**60),
        ("attempt", 10**19),
        ("updated", 1e300),
        ("updated", -1),
        ("checkpointTime", 1e12),
        ("checkpointStep", -5),
        ("etaSeconds", 1e300),
        ("workerRestarts", 10**20),
        ("exportPath", "x" * 5000),
        ("modelRevision", "x" * 5000),
        ("phase", "dancing"),
        ("unknown", 1),
    ],
)
def test_progress_outside_the_limits_of_a_status_is_rejected(field, value):
    with pytest.raises(ValidationError):
        Progress.model_validate_json(json.dumps({**PROGRESS, field: value}))


def test_time_of_nan_is_rejected():
    with pytest.raises(ValidationError):
        Progress.model_validate_json(json.dumps({**PROGRESS, "updated": "?"}).replace('"?"', "NaN"))


@pytest.mark.parametrize(
    ("field", "value"),
    [("step", 10**30), ("step", -1), ("rank", -1), ("checkpointStep", 2**80), ("exportPath", "x" * 4000)],
)
def test_report_outside_the_limits_of_a_status_is_rejected(field, value):
    with pytest.raises(ValidationError):
        ExitReport.model_validate_json(json.dumps({**REPORT, field: value}))
