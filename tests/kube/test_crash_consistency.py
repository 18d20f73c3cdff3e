"""The operator dies, and so does what is around it; the jobs end as if nothing had been.

A real API server, scheduler and controller manager; pods that play scripts; operators that are real processes, with a
proxy between that kills them or spoils their talk. An independent witness watches all the time.
"""

import os
import random
import time
from collections import Counter

import pytest
from audit import Audit, orphans
from crash_trials import Bench, KillAlways, KillAt, Killer
from fault_proxy import FaultProxy, tally
from kubectl import wait
from kubelets import KubeletProcess
from lives import SCRIPTS, Home, Life, World, poll_all
from operator_process import QuickOperator
from storm import Storm, Tenant

AT_ONCE = 12
JOBS, WAVES, WAVE_SECONDS, CONVERGED_SECONDS = 20, 6, 6.0, 5.0
OUTAGE_SECONDS = 3.0
SEED = int(os.environ.get("STORM_SEED", "1"))


@pytest.fixture(scope="module")
def witness(control_plane):
    with Audit(control_plane) as audit:
        yield audit


@pytest.fixture(scope="module")
def world(control_plane, witness):
    return World(control_plane, witness)


@pytest.fixture(scope="module")
def nodes(control_plane, tmp_path_factory):
    """Function: a kubelet that plays pods which never end by themselves."""
    started = []

    def start(names):
        started.append(KubeletProcess(control_plane, ",".join(names), tmp_path_factory.mktemp("kubelet"), fake={}))

    yield start
    for process in started:
        process.close()


def passed(moment):
    return lambda: time.monotonic() > moment


def unlike(one, other):
    """What is in one and not in the other."""
    return {key: (one.get(key), other.get(key)) for key in {*one, *other} if one.get(key) != other.get(key)}


def test_killed_before_and_after_every_write(control_plane, world, nodes, tmp_path, say):
    pairs = [(f"a{i}", f"b{i}") for i in range(AT_ONCE)]
    nodes(["spare", *(name for pair in pairs for name in pair)])
    with FaultProxy(control_plane, tmp_path) as proxy:
        bench = Bench(world, proxy, tmp_path, pairs)
        undisturbed = {outcome.script.name: outcome for outcome in bench.run((s, Killer()) for s in SCRIPTS)}
        trials = [(script, KillAlways()) for script in SCRIPTS]
        for script in SCRIPTS:
            for number in range(1, undisturbed[script.name].killer.writes + 1):
                trials += [(script, KillAt(number, forward=forward)) for forward in (False, True)]
        outcomes = bench.run(trials)
    for script in SCRIPTS:
        mine = [outcome for outcome in outcomes if outcome.script is script]
        say(
            f"{script.name}: {undisturbed[script.name].killer.writes} writes, {len(mine)} lives, "
            f"{sum(outcome.killer.kills for outcome in mine)} kills, longest {max(o.seconds for o in mine):.1f} s"
        )
    wrong = [f"{o.script.name}, {o.killer}: {text}" for o in (*undisturbed.values(), *outcomes) for text in o.wrong]
    wrong += [
        f"{o.script.name}, {o.killer}: {difference}"
        for o in outcomes
        if not o.wrong and (difference := unlike(o.status, undisturbed[o.script.name].status))
    ]
    assert wrong == []
    assert world.audit.violations == []
    wait(lambda: not orphans(control_plane, bench.namespaces), "no orphans")
    missed = Counter(o.killer.kills for o in outcomes)[0]
    assert missed <= len(trials) / 10, f"{missed} of {len(trials)} writes never came"
    say(tally(proxy.faults))


def test_a_storm_of_faults(control_plane, world, nodes, tmp_path, say):
    """Twenty jobs at a time; in each wave every one of them takes a step of its life, or another one begins.

    The first wave has no faults: how long that takes to settle says how fast the machine is.
    """
    pairs = [(f"c{i}", f"d{i}") for i in range(JOBS)]
    nodes(["spare", *(name for pair in pairs for name in pair)])
    dice = random.Random(SEED)
    with FaultProxy(control_plane, tmp_path) as proxy:
        namespace = world.admin.make_namespace(f"storm-{proxy.port}")
        homes = [Home(world.admin, f"storm-{i}", pair) for i, pair in enumerate(pairs)]
        tenants = [Tenant(world, namespace, home, number) for number, home in enumerate(homes)]
        operator = QuickOperator(proxy.kubeconfig, tmp_path / "operator.log", namespace)
        storm = Storm(SEED, operator.kill)
        proxy.script, proxy.stream_script = storm.script, storm.stream_script

        def settled():
            if not operator.alive:
                operator.start()
            return poll_all(tenants)

        def until(condition, *arguments):
            """The lives go on meanwhile."""
            wait(lambda: (settled(), condition())[1], *arguments)

        calm = 0.0
        try:
            for wave in range(WAVES):
                moments = [time.monotonic() + dice.uniform(0, WAVE_SECONDS) for _ in tenants]
                for tenant, moment in zip(tenants, moments, strict=True):
                    tenant.move_on(moment, last=wave == WAVES - 1)
                if wave:
                    storm.begin(WAVE_SECONDS, hangs=3 * (wave % 2), kills=2)
                until(passed(max(moments)))
                storm.end()
                until(lambda: not proxy.hanging, "the requests that hang")
                wait(settled, "convergence", 60)
                seconds = time.monotonic() - max(*moments, *(fault.until for fault in proxy.faults))
                calm = calm or seconds
                say(f"wave {wave}: {len(proxy.faults)} faults so far, converged {seconds:.1f} s after the last")
                assert seconds < calm + CONVERGED_SECONDS
        finally:
            operator.kill()
    assert [text for tenant in tenants for life in tenant.lives for text in life.verdict()] == []
    assert world.audit.violations == []
    wait(lambda: not orphans(control_plane, [namespace]), "no orphans")
    say(tally(proxy.faults))
    assert len(proxy.faults) >= 200


def test_the_api_server_goes_away(control_plane, world, nodes, tmp_path, say):
    """In the middle of the verdicts on broken attempts. What the operator owes afterwards are the next gangs' pods."""
    pairs = [(f"e{i}", f"f{i}") for i in range(6)]
    nodes(["spare", *(name for pair in pairs for name in pair)])
    namespace = world.admin.make_namespace("outage")
    lives = [
        Life(
            world, SCRIPTS[i % len(SCRIPTS)], namespace, f"job-{i}", Home(world.admin, f"outage-{i}", pair).name
        ).begin()
        for i, pair in enumerate(pairs)
    ]
    operator = QuickOperator(control_plane.kubeconfig("admin"), tmp_path / "operator.log", namespace).start()
    try:
        wait(lambda: poll_all(lives, 0), "the first attempts", 60)
        poll_all(lives, 1)
        control_plane.stop_apiserver()
        time.sleep(OUTAGE_SECONDS)
        control_plane.start_apiserver()
        began = time.monotonic()
        wait(lambda: all(life.status.get("attempt") == 2 and len(life.pods(2)) == 2 for life in lives), "new attempts")
        seconds = time.monotonic() - began
        say(f"API server away for {OUTAGE_SECONDS:g} s: all had their pods {seconds:.1f} s after it was back")
        assert seconds < CONVERGED_SECONDS
        wait(lambda: poll_all(lives), "the ends of all lives", 120)
    finally:
        operator.kill()
    assert [text for life in lives for text in life.verdict()] == []
    assert world.audit.violations == []
