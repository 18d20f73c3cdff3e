"""Names, quantities, times and sizes."""

from __future__ import annotations

import pytest
from core_builders import T0, job, pod, seen, settle
from hypothesis import given
from hypothesis import strategies as some

from hftitan_api.admit import JOB_NAME_LIMIT
from hftitan_api.mesh import SpecError, plan
from hftitan_operator.core import clock, naming
from hftitan_operator.core.rendering import quantity, sizing


def test_all_names_of_a_job_with_the_longest_name_fit_a_label():
    name = "a" * JOB_NAME_LIMIT
    labels = naming.pod_labels(name, 999_999, 99_999)
    for text in (naming.pod_name(name, 999_999, 99_999, 100_000), naming.config_name(name), *labels.values()):
        assert len(text) <= naming.LABEL_LIMIT


def test_names_of_two_attempts_differ():
    assert naming.pod_name("x", 1, 0, 4) != naming.pod_name("x", 2, 0, 4)
    assert naming.rendezvous_id("u", 1) != naming.rendezvous_id("u", 2)


@pytest.mark.parametrize("nodes", [1, 2, 10, 11, 100, 5000])
def test_pod_names_sort_in_the_order_of_their_indices(nodes):
    names = [naming.pod_name("x", 1, index, nodes) for index in range(nodes)]
    assert names == sorted(set(names))
    assert all(naming.is_pod_of(name, "x") for name in names)
    assert naming.pod_name("x", 2, 3, 10) == "x-2-3"


@pytest.mark.parametrize(
    ("text", "value"), [("500m", 0.5), ("4", 4), ("1.5Gi", 1.5 * 2**30), ("2k", 2000), ("3M", 3e6), ("16Gi", 2**34)]
)
def test_quantities(text, value):
    assert quantity.parse(text) == value


@pytest.mark.parametrize("text", ["", "Gi", "4Qi", "x", "1Ki2"])
def test_an_invalid_quantity_is_a_value_error(text):
    with pytest.raises(ValueError):
        quantity.parse(text)


@given(some.integers(1, 2**50))
def test_a_size_is_never_rounded_down(size):
    assert 0 <= quantity.parse(quantity.mebibytes(size)) - size < quantity.MIB


def test_times_round_trip_in_whole_seconds():
    assert clock.rfc3339(T0) == "2027-01-15T08:00:00Z"
    assert clock.unix(clock.rfc3339(T0 + 0.9)) == T0
    assert clock.maybe_unix(None) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (-3, "0s"),
        (45.4, "45s"),
        (200, "3m20s"),
        (60, "1m"),
        (4320, "1h12m"),
        (3605, "1h"),
        (183_600, "2d3h"),
    ],
)
def test_durations(seconds, text):
    assert clock.duration(seconds) == text


@pytest.mark.parametrize(
    ("mesh", "size"),
    [
        ({"device": "cpu", "gpusPerNode": 1}, "256Mi"),
        ({"device": "cpu", "gpusPerNode": 8}, "512Mi"),
        ({"device": "gpu", "gpusPerNode": 1}, "1Gi"),
        ({"device": "gpu", "gpusPerNode": 8}, "2Gi"),  # 8 ranks x 3 communicators x 64 MiB = 1.5 GiB
        ({"device": "gpu", "gpusPerNode": 8, "tp": 4, "dpReplicate": 2}, "3Gi"),  # 8 x (2 + tp, rep, shard) x 64 MiB
    ],
)
def test_shared_memory_depends_on_the_mesh(mesh, size):
    assert quantity.mebibytes(sizing.shm_bytes(plan(job(mesh=mesh).spec).degrees)) == size


@pytest.mark.parametrize(
    ("checkpoint", "seconds"),
    [
        ({"volume": None, "interval": 0, "exportHF": False}, 120),
        ({"volume": "claim"}, 390),
        ({"volume": "claim", "asyncMode": "async"}, 690),
    ],
)
def test_the_grace_period_includes_the_last_save(checkpoint, seconds):
    assert sizing.grace_seconds(job(checkpoint=checkpoint).spec.checkpoint) == seconds


def resources(**pod):
    of = job(nodes=1, mesh={"gpusPerNode": 2}, pod=pod)
    return sizing.resources(of.spec.pod, plan(of.spec).degrees, 2**30)


def test_default_requests():
    assert resources() == {"requests": {"cpu": "2", "memory": "5Gi"}}


def test_user_values_take_precedence_and_a_limit_is_also_the_request():
    assert resources(resources={"requests": {"cpu": "3"}, "limits": {"memory": "8Gi", "cpu": "4"}}) == {
        "requests": {"cpu": "3", "memory": "8Gi"},
        "limits": {"cpu": "4", "memory": "8Gi"},
    }


@pytest.mark.parametrize(
    ("given_resources", "message"),
    [
        (
            {"requests": {"cpu": "5"}, "limits": {"cpu": "4"}},
            "spec.pod.resources.requests.cpu: 5 is more than the limit 4; use at most 4",
        ),
        (
            {"limits": {"nvidia.com/gpu": "4"}},
            "spec.pod.resources.limits: nvidia.com/gpu is set by spec.mesh.gpusPerNode (2); remove it here",
        ),
        (
            {"limits": {"memory": "1Gi"}},
            "spec.pod.resources.limits.memory: 1Gi must be more than /dev/shm, which is part of it (1Gi); raise it or "
            "set a smaller spec.pod.shmSize",
        ),
    ],
)
def test_impossible_resources_are_rejected(given_resources, message):
    with pytest.raises(SpecError) as error:
        resources(resources=given_resources)
    assert str(error.value) == message


def test_threads_are_the_requested_cores_per_rank():
    mesh = plan(job(nodes=1, mesh={"gpusPerNode": 4}).spec).degrees
    assert sizing.threads_per_rank({"cpu": "9"}, mesh) == 2
    assert sizing.threads_per_rank({"cpu": "500m"}, mesh) == 1


def test_a_job_that_ends_before_the_first_poll_shows_its_steps():
    of, _ = settle(job(), seen(), T0)
    of, _ = settle(of, seen(pod(0), pod(1)), T0)
    assert of.status.progress is None
    report = {"reason": "Completed", "retryable": False, "step": 100}
    ended = (pod(i, phase="Succeeded", report=report) for i in range(2))
    of, _ = settle(of, seen(*ended), T0 + 60)
    assert of.status.phase == "Succeeded"
    assert (of.status.progress.step, of.status.progress.steps) == (100, 100)
