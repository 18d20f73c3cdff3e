"""What a pod says of itself: an image is the user's, and no word of it may break the status it ends in."""

import json

import pytest
from pydantic import ValidationError

from hftitan_api.wire import ExitReport, Progress

PROGRESS = {"attempt": 1, "phase": "training", "step": 3, "steps": 10, "updated": 1_800_000_000.0}
REPORT = {"reason": "InternalError", "retryable": True, "step": 3}


@pytest.mark.parametrize("field", ["loss", "gradNorm", "lr", "tokensPerSecond", "mfu", "stepSeconds", "etaSeconds"])
@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_json_has_no_word_for_is_not_known(field, value):
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
        ("unheard", 1),
    ],
)
def test_progress_that_no_status_can_hold_is_no_progress(field, value):
    with pytest.raises(ValidationError):
        Progress.model_validate_json(json.dumps({**PROGRESS, field: value}))


def test_a_time_that_is_no_number():
    with pytest.raises(ValidationError):
        Progress.model_validate_json(json.dumps({**PROGRESS, "updated": "?"}).replace('"?"', "NaN"))


@pytest.mark.parametrize(
    ("field", "value"),
    [("step", 10**30), ("step", -1), ("rank", -1), ("checkpointStep", 2**80), ("exportPath", "x" * 4000)],
)
def test_a_report_that_no_status_can_hold_is_no_report(field, value):
    with pytest.raises(ValidationError):
        ExitReport.model_validate_json(json.dumps({**REPORT, field: value}))
