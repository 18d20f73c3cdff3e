"""decide against a model cluster in which every part, also the operator, may fail at any time."""

from __future__ import annotations

from core_builders import edited, job
from core_cluster import Cluster, live, play
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from hftitan_api.models import TERMINAL

OPS = (
    ["pass"] * 6
    + ["crash", "lost_write"] * 2
    + ["kubelet"] * 4
    + ["train", "tick"] * 3
    + ["crash_pod", "exit", "delete", "vanish", "evict", "long_tick", "suspend", "resume"]
    + ["node_lost", "node_back", "node_gone"] * 2
    + ["complete", "drop_service", "drop_config", "bad_image", "stale_progress", "touch"]
)
# By default hypothesis mostly draws short histories, in which few failures are possible.
operations = some.lists(some.tuples(some.sampled_from(OPS), some.integers(0, 7)), min_size=12, max_size=40)
policies = some.fixed_dictionaries(
    {
        "maxRestarts": some.sampled_from([0, 1, 3, 63]),
        "cleanPodPolicy": some.sampled_from(["Running", "All"]),
        "hangTimeoutSeconds": some.sampled_from([60, 1800]),
        "startupTimeoutSeconds": some.sampled_from([60, 1800]),
        "restartWindowSeconds": some.sampled_from([0, 600]),
    },
    optional={
        "activeDeadlineSeconds": some.sampled_from([300, 5000]),
        "ttlSecondsAfterFinished": some.sampled_from([0, 100]),
        "suspend": some.just(True),
    },
)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(
    nodes=some.integers(1, 3),
    policy=policies,
    gang=some.sampled_from(["none", "volcano"]),
    started=some.booleans(),
    ops=operations,
)
def test_any_history_converges_without_two_attempts_at_once(nodes, policy, gang, started, ops):
    world = Cluster(job(nodes=nodes, runPolicy=policy, scheduling={"gang": gang}))
    start = [("pass", 0), ("kubelet", 0), ("pass", 0), ("train", 3), ("pass", 0)] if started else []
    for name, number in [*start, *ops]:
        if world.gone:
            return
        play(world, name, number)
    world.finish()
    if world.gone:
        return
    status = world.job.status
    assert not any(live(pod) for pod in world.pods.values())
    if world.job.spec.run_policy.suspend and status.phase not in TERMINAL:
        assert status.phase == "Suspended"
        assert not world.groups, "a suspended job has no PodGroup"
        world.job = edited(world.job, runPolicy={"suspend": False})
        world.finish()
    assert world.gone or world.job.status.phase in TERMINAL
    left = {f"x-uid-{world.job.status.attempt}"} if world.job.status.phase == "Succeeded" else set()
    assert world.gone or world.groups <= left, "an ended attempt has no PodGroup"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(nodes=some.integers(1, 3), crashes=some.lists(some.integers(0, 6), max_size=12))
def test_operator_crashes_in_a_cluster_without_failures_cause_no_second_attempt(nodes, crashes):
    world = Cluster(job(nodes=nodes))
    for crash in crashes:
        world.pass_(crash_after=crash)
        world.kubelet()
    world.finish()
    assert world.job.status.phase == "Succeeded"
    assert world.job.status.attempt == 1
    assert world.job.status.restarts == 0
    assert world.uids == nodes
