"""Crash consistency: jobs end as if nothing had happened when the operator or the API server fails.

Runs on a real API server, scheduler and controller manager. The pods are scripted. The operators are real processes,
behind a proxy that kills them or injects faults. An audit watches the objects independently of the operator.
"""

import contextlib
import os
import random
import time
from collections import Counter

import pytest
from audit import Audit, orphans
from crash_trials import KillAlways, KillAt, Killer, TrialRunner
from fault_proxy import FaultProxy, tally
from kubectl import wait
from kubelets import KubeletProcess
from operator_process import QuickOperator
from random_faults import RandomFaults, ScenarioLoop
from scenarios import NODES, SCENARIOS, AuditedCluster, NodeGroup, ScenarioRun, poll_all

AT_ONCE = 12
JOBS, WAVES, WAVE_SECONDS, CONVERGED_SECONDS = 20, 6, 5.0, 5.0
HANGING_WAVES = (1, 4)
"""Waves with hanging requests. They take longer, because a client gives up only after ten seconds."""
OUTAGE_SECONDS = 3.0
SILENCE_SECONDS, BOOKMARK_SECONDS = 1.5, 0.3
"""With random faults: when the operator regards a watch as stalled, and how often the proxy sends a bookmark."""
SEED = int(os.environ.get("STORM_SEED", "1"))


@pytest.fixture(scope="module")
def audit(control_plane):
    with Audit(control_plane) as watching:
        yield watching


@pytest.fixture(scope="module")
def cluster(control_plane, audit):
    return AuditedCluster(control_plane, audit)


@pytest.fixture(scope="module")
def nodes(control_plane, tmp_path_factory):
    """Function: start a kubelet whose scripted pods never end by themselves."""
    started = []

    def start(names):
        started.append(KubeletProcess(control_plane, ",".join(names), tmp_path_factory.mktemp("kubelet"), fake={}))

    yield start
    for process in started:
        process.close()


def converged_seconds():
    """Return CONVERGED_SECONDS, scaled by the load of the machine."""
    busy = os.getloadavg()[0] / (2 * (os.cpu_count() or 1))
    return CONVERGED_SECONDS * max(1.0, busy)


def passed(when):
    return lambda: time.monotonic() > when


def differences(one, other):
    """Return the entries in which the two differ."""
    return {key: (one.get(key), other.get(key)) for key in {*one, *other} if one.get(key) != other.get(key)}


def test_operator_killed_before_and_after_every_write(control_plane, cluster, nodes, tmp_path, say):
    pairs = [(f"a{i}", f"b{i}") for i in range(AT_ONCE)]
    nodes(["spare", *(name for pair in pairs for name in pair)])
    with FaultProxy(control_plane, tmp_path) as proxy:
        runner = TrialRunner(cluster, proxy, tmp_path, pairs)
        undisturbed = {outcome.scenario.name: outcome for outcome in runner.run((s, Killer()) for s in SCENARIOS)}
        trials = [(scenario, KillAlways()) for scenario in SCENARIOS]
        for scenario in SCENARIOS:
            for number in range(1, undisturbed[scenario.name].killer.writes + 1):
                trials += [(scenario, KillAt(number, forward=forward)) for forward in (False, True)]
        outcomes = runner.run(trials)
    for scenario in SCENARIOS:
        mine = [outcome for outcome in outcomes if outcome.scenario is scenario]
        say(
            f"{scenario.name}: {undisturbed[scenario.name].killer.writes} writes, {len(mine)} runs, "
            f"{sum(outcome.killer.kills for outcome in mine)} kills, longest {max(o.seconds for o in mine):.1f} s"
        )
    problems = [
        f"{o.scenario.name}, {o.killer}: {text}" for o in (*undisturbed.values(), *outcomes) for text in o.problems
    ]
    problems += [
        f"{o.scenario.name}, {o.killer}: {difference}"
        for o in outcomes
        if not o.problems and (difference := differences(o.status, undisturbed[o.scenario.name].status))
    ]
    assert not problems, "\n".join(problems)
    assert cluster.audit.violations == []
    wait(lambda: not orphans(control_plane, runner.namespaces), "no orphans")
    missed = Counter(o.killer.kills for o in outcomes)[0]
    assert missed <= len(trials) / 10, f"{missed} of {len(trials)} trials never reached their write"
    say(tally(proxy.faults))


def test_random_faults_while_twenty_jobs_run(control_plane, cluster, nodes, tmp_path, say):
    """In each wave, every loop does one more step of its run, or starts the next run.

    The first wave has no faults, for comparison. The time of the scheduler and the kubelets does not count.
    """
    pairs = [(f"c{i}", f"d{i}") for i in range(JOBS)]
    nodes(["spare", *(name for pair in pairs for name in pair)])
    dice = random.Random(SEED)
    with FaultProxy(control_plane, tmp_path) as proxy:
        namespace = cluster.admin.make_namespace(f"random-faults-{proxy.port}")
        groups = [NodeGroup(cluster.admin, f"random-faults-{i}", pair) for i, pair in enumerate(pairs)]
        loops = [ScenarioLoop(cluster, namespace, group, number) for number, group in enumerate(groups)]
        operator = QuickOperator(proxy.kubeconfig, tmp_path / "operator.log", namespace, silence=SILENCE_SECONDS)
        proxy.bookmark_seconds = BOOKMARK_SECONDS
        random_faults = RandomFaults(SEED, operator.kill)
        proxy.script, proxy.stream_script = random_faults.script, random_faults.stream_script

        def settled():
            if not operator.alive:
                operator.start()
            return poll_all(loops)

        def until(condition, *arguments):
            """Wait for a condition, and poll the runs meanwhile."""
            wait(lambda: (settled(), condition())[1], *arguments)

        def settle():
            """Wait until all have settled; return the seconds in which a run waited for the operator."""
            waited, looked = 0.0, time.monotonic()

            def done():
                nonlocal waited, looked
                now = time.monotonic()
                waited += (now - looked) * any(loop.waits_for_operator for loop in loops)
                looked = now
                return settled()

            wait(done, "convergence", 60)
            return waited

        with operator:
            for wave in range(WAVES):
                times = [time.monotonic() + dice.uniform(0, WAVE_SECONDS) for _ in loops]
                for loop, when in zip(loops, times, strict=True):
                    loop.schedule(when, last=wave == WAVES - 1)
                if wave:
                    random_faults.begin(WAVE_SECONDS, hangs=4 if wave in HANGING_WAVES else 0, kills=2)
                until(passed(max(times)))
                random_faults.end()
                until(lambda: not proxy.hanging, "the hanging requests")
                waited = settle()
                seconds = time.monotonic() - max(*times, *(fault.until for fault in proxy.faults))
                say(
                    f"wave {wave}: {len(proxy.faults)} faults so far; all settled {seconds:.1f} s after the last one, "
                    f"of which {waited:.1f} s waiting for the operator"
                )
                assert waited < converged_seconds()
    problems = [text for loop in loops for run in loop.runs for text in run.problems()]
    assert not problems, "\n".join(problems)
    assert cluster.audit.violations == []
    wait(lambda: not orphans(control_plane, [namespace]), "no orphans")
    say(tally(proxy.faults))
    assert len(proxy.faults) >= 200


@contextlib.contextmanager
def outage(plane):
    """Stop the API server for a while; yield the time at which it is back. The controller manager stays stopped longer,
    because it would declare the nodes lost."""
    plane.stop_controller_manager()
    plane.stop_apiserver()
    try:
        time.sleep(OUTAGE_SECONDS)
    finally:
        plane.start_apiserver()
    try:
        yield time.monotonic()
    finally:
        plane.start_controller_manager()


def test_outage_of_the_api_server(control_plane, cluster, nodes, tmp_path, say):
    """The outage begins while attempts are failing. Afterwards the operator must create the next attempts' pods."""
    pairs = [(f"e{i}", f"f{i}") for i in range(6)]
    nodes(["spare", *(name for pair in pairs for name in pair)])
    namespace = cluster.admin.make_namespace("outage")
    runs = []
    for number, pair in enumerate(pairs):
        group = NodeGroup(cluster.admin, f"outage-{number}", pair)
        runs.append(
            ScenarioRun(cluster, SCENARIOS[number % len(SCENARIOS)], namespace, f"job-{number}", group.name).create()
        )

    def restarted():
        return all(run.status.get("attempt") == 2 and len(run.pods(2)) == NODES for run in runs)

    with QuickOperator(control_plane.kubeconfig("admin"), tmp_path / "operator.log", namespace):
        wait(lambda: poll_all(runs, 0), "the first attempts", 60)
        poll_all(runs, 1)
        with outage(control_plane) as back:
            wait(restarted, "new attempts")
            seconds = time.monotonic() - back
        say(f"API server down for {OUTAGE_SECONDS:g} s: all jobs had pods {seconds:.1f} s after it was back")
        wait(lambda: poll_all(runs), "the end of all runs", 120)
    problems = [text for run in runs for text in run.problems()]
    assert not problems, "\n".join(problems)
    assert cluster.audit.violations == []
    assert seconds < converged_seconds()
