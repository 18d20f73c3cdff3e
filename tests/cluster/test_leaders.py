"""Two replicas of the operator: only the leader acts, and the other takes over when it exits or its lease expires."""

import contextlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from audit import Audit
from fault_proxy import FaultProxy, reset
from kubectl import wait
from kubelets import KubeletProcess
from operator_process import OperatorProcess
from scenarios import CRASH_AND_SUSPENSION, AuditedCluster, NodeGroup, ScenarioRun, pods_running

LEASE = "hftitan-operator"


@dataclass
class Replica:
    operator: OperatorProcess
    proxy: FaultProxy


@dataclass
class Pair:
    """Two replicas that serve one namespace, each through a proxy."""

    cluster: AuditedCluster
    namespace: str
    group: NodeGroup
    replicas: list[Replica]

    def leads(self, replica: Replica) -> bool:
        lease = self.cluster.admin.find("leases", LEASE, self.namespace)
        holder = (lease or {}).get("spec", {}).get("holderIdentity") or ""
        return holder.split("_")[1:2] == [str(replica.operator.pid)]

    def roles(self) -> tuple[Replica, Replica]:
        """Return the leader and the standby."""
        one, two = self.replicas
        wait(lambda: self.leads(one) or self.leads(two), "a leader")
        return (one, two) if self.leads(one) else (two, one)

    def begin(self, name: str) -> ScenarioRun:
        return ScenarioRun(self.cluster, CRASH_AND_SUSPENSION, self.namespace, name, self.group.name).create()

    def served(self, run: ScenarioRun, within: float, since: float) -> float:
        """Wait for the job's pods; return the seconds since `since`."""
        wait(lambda: len(run.pods(1)) == 2, f"the pods of {run.name}", within + 10)
        seconds = time.monotonic() - since
        assert seconds < within
        return seconds

    def pods_written(self) -> list[str]:
        """Return the names of all pods that were created or deleted through either proxy."""
        calls = [call for replica in self.replicas for call in replica.proxy.writes if call.resource == "pods"]
        return sorted(call.name or json.loads(call.body)["metadata"]["name"] for call in calls)


def killed(pair):
    leader, _ = pair.roles()
    leader.operator.kill()
    since = time.monotonic()
    seconds = pair.served(pair.begin("new"), 15, since)
    return f"SIGKILL to the leader: a new job had pods after {seconds:.1f} s"


def terminated(pair):
    leader, _ = pair.roles()
    since = time.monotonic()
    leader.operator.terminate()
    seconds = pair.served(pair.begin("new"), 2, since)
    assert leader.operator.ended(10) == 0
    return f"SIGTERM to the leader: a new job had pods after {seconds:.1f} s"


def cut_off(pair):
    """The leader loses the API while it retries a write. It must exit before the other replica acts."""
    leader, other = pair.roles()
    leader.proxy.script = lambda call: reset() if call.is_write else None
    new = pair.begin("new")
    wait(lambda: leader.proxy.faults, "a write of the leader")
    leader.proxy.cut_off()
    since = time.monotonic()
    wait(lambda: pair.leads(other), "the other replica to lead")
    taken_over = time.monotonic()
    assert leader.operator.ended(10) == 1
    seconds = pair.served(new, 15, since)
    late = [fault for fault in leader.proxy.faults if fault.at > taken_over and "/leases/" not in fault.path]
    assert [fault for fault in late if fault.method != "GET"] == []
    return f"leader cut off from the API: it exited, and a new job had pods after {seconds:.1f} s"


def frozen(pair):
    """The leader is stopped while it works, for longer than the lease. Afterwards it must write nothing."""
    leader, other = pair.roles()
    new = pair.begin("new")
    wait(lambda: any(call.resource == "services" for call in leader.proxy.writes), "a write of the leader")
    leader.operator.freeze()
    since = time.monotonic()
    wait(lambda: pair.leads(other), "the other replica to lead")
    seconds = pair.served(new, 15, since)
    thawed = time.monotonic()
    leader.operator.thaw()
    assert leader.operator.ended(10) == 1
    assert [str(call) for call in leader.proxy.writes if call.at > thawed] == []
    return f"SIGSTOP to the leader: the other replica finished its work after {seconds:.1f} s"


SCENARIOS = (killed, terminated, cut_off, frozen)


@pytest.fixture
def pairs(control_plane, tmp_path):
    """One pair for each scenario."""
    names = [scenario.__name__.replace("_", "-") for scenario in SCENARIOS]
    nodes = [f"node-{name}" for name in names]
    kubelet = KubeletProcess(control_plane, ",".join([*nodes, "node-spare"]), tmp_path / "kubelet", fake={})
    with contextlib.ExitStack() as stack:
        stack.callback(kubelet.close)
        cluster = AuditedCluster(control_plane, stack.enter_context(Audit(control_plane)))
        found = []
        for name, node in zip(names, nodes, strict=True):
            namespace = cluster.admin.make_namespace(name)
            options = ("--namespace", namespace, "--leader-elect", "--lease-namespace", namespace)
            pair = Pair(cluster, namespace, NodeGroup(cluster.admin, name, [node]), [])
            for number in range(2):
                proxy = stack.enter_context(FaultProxy(control_plane, tmp_path))
                operator = OperatorProcess(proxy.kubeconfig, tmp_path / f"{name}-{number}.log", *options).start()
                stack.callback(operator.kill)
                pair.replicas.append(Replica(operator, proxy))
            found.append(pair)
        for pair in found:
            for replica in pair.replicas:
                replica.operator.wait_ready()
        yield found
        for pair in found:
            cluster.admin.delete("namespaces", pair.namespace)


def test_only_the_leader_acts(pairs, say):
    """The scenarios run in parallel, because they mostly wait for leases to expire."""

    def play(scenario, pair):
        old = pair.begin("old")
        wait(lambda: pods_running(1)(old), "the old job to run")
        line = scenario(pair)
        assert [name for name in pair.pods_written() if name.startswith("old")] == ["old-1-0", "old-1-1"]
        return line

    with ThreadPoolExecutor(len(SCENARIOS)) as pool:
        for line in pool.map(play, SCENARIOS, pairs):
            say(line)
    assert pairs[0].cluster.audit.violations == []
