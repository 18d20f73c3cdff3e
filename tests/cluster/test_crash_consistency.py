"""The operator dies, and so does what is around it; the jobs end as if nothing had been.

A real API server, scheduler and controller manager; pods that play scripts; operators that are real processes, with a
proxy between that kills them or spoils their talk. An independent witness watches all the time.
"""

import contextlib
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
from lives import NODES, SCRIPTS, Home, Life, World, poll_all
from operator_process import QuickOperator
from storm import Storm, Tenant

AT_ONCE = 12
JOBS, WAVES, WAVE_SECONDS, CONVERGED_SECONDS = 20, 6, 5.0, 5.0
HANGING_WAVES = (1, 4)
"""They take longer: a client gives up after ten seconds."""
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


def converged_seconds():
    """On a machine that is busy with other things as well, in proportion."""
    busy = os.getloadavg()[0] / (2 * (os.cpu_count() or 1))
    return CONVERGED_SECONDS * max(1.0, busy)


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
    assert not wrong, "\n".join(wrong)
    assert world.audit.violations == []
    wait(lambda: not orphans(control_plane, bench.namespaces), "no orphans")
    missed = Counter(o.killer.kills for o in outcomes)[0]
    assert missed <= len(trials) / 10, f"{missed} of {len(trials)} writes never came"
    say(tally(proxy.faults))


def test_a_storm_of_faults(control_plane, world, nodes, tmp_path, say):
    """Twenty jobs at a time; in each wave every one of them takes a step of its life, or another one begins.

    The first wave has no faults, for comparison. What scheduler and kubelets take is no fault of the operator's.
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

        def settle():
            """The seconds in which something was up to the operator."""
            owed, looked = 0.0, time.monotonic()

            def done():
                nonlocal owed, looked
                now = time.monotonic()
                owed += (now - looked) * any(tenant.owed for tenant in tenants)
                looked = now
                return settled()

            wait(done, "convergence", 60)
            return owed

        with operator:
            for wave in range(WAVES):
                moments = [time.monotonic() + dice.uniform(0, WAVE_SECONDS) for _ in tenants]
                for tenant, moment in zip(tenants, moments, strict=True):
                    tenant.move_on(moment, last=wave == WAVES - 1)
                if wave:
                    storm.begin(WAVE_SECONDS, hangs=4 if wave in HANGING_WAVES else 0, kills=2)
                until(passed(max(moments)))
                storm.end()
                until(lambda: not proxy.hanging, "the requests that hang")
                owed = settle()
                seconds = time.monotonic() - max(*moments, *(fault.until for fault in proxy.faults))
                say(
                    f"wave {wave}: {len(proxy.faults)} faults so far; all had settled {seconds:.1f} s after the last, "
                    f"{owed:.1f} s of that up to the operator"
                )
                assert owed < converged_seconds()
    wrong = [text for tenant in tenants for life in tenant.lives for text in life.verdict()]
    assert not wrong, "\n".join(wrong)
    assert world.audit.violations == []
    wait(lambda: not orphans(control_plane, [namespace]), "no orphans")
    say(tally(proxy.faults))
    assert len(proxy.faults) >= 200


@contextlib.contextmanager
def outage(plane):
    """Of the API server; then the time at which it was back. The controller manager is away for longer, as it would
    take the nodes' silence for their loss."""
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


def test_the_api_server_goes_away(control_plane, world, nodes, tmp_path, say):
    """In the middle of the verdicts on broken attempts. What the operator owes afterwards are the next gangs' pods."""
    pairs = [(f"e{i}", f"f{i}") for i in range(6)]
    nodes(["spare", *(name for pair in pairs for name in pair)])
    namespace = world.admin.make_namespace("outage")
    lives = []
    for number, pair in enumerate(pairs):
        home = Home(world.admin, f"outage-{number}", pair)
        lives.append(Life(world, SCRIPTS[number % len(SCRIPTS)], namespace, f"job-{number}", home.name).begin())

    def restarted():
        return all(life.status.get("attempt") == 2 and len(life.pods(2)) == NODES for life in lives)

    with QuickOperator(control_plane.kubeconfig("admin"), tmp_path / "operator.log", namespace):
        wait(lambda: poll_all(lives, 0), "the first attempts", 60)
        poll_all(lives, 1)
        with outage(control_plane) as back:
            wait(restarted, "new attempts")
            seconds = time.monotonic() - back
        say(f"API server away for {OUTAGE_SECONDS:g} s: all had their pods {seconds:.1f} s after it was back")
        wait(lambda: poll_all(lives), "the ends of all lives", 120)
    wrong = [text for life in lives for text in life.verdict()]
    assert not wrong, "\n".join(wrong)
    assert world.audit.violations == []
    assert seconds < converged_seconds()
