"""Whole objects against golden files, and what must hold for every object of every job."""

from __future__ import annotations

import json

import core_golden
import pytest
import yaml
from core_builders import job
from pod_security import violations

from hftitan_api.mesh import SpecError, plan
from hftitan_api.wire import TrainerSpec
from hftitan_operator.core import admission
from hftitan_operator.core.render import render


def rendered(of, attempt=1):
    return render(of, plan(of.spec), attempt)


def env_of(pod):
    return {var["name"]: var.get("value", var.get("valueFrom")) for var in pod["spec"]["containers"][0]["env"]}


def arguments_of(pod):
    words = (word.partition("=") for word in pod["spec"]["containers"][0]["args"])
    return {name: value for name, _, value in words}


@pytest.mark.parametrize("case", core_golden.CASES)
def test_whole_objects_are_the_golden_ones(case):
    golden = (core_golden.FOLDER / f"{case}.yaml").read_text()
    now = core_golden.rendered(case)
    assert list(yaml.safe_load_all(now)) == list(yaml.safe_load_all(golden)), "python tests/core/core_golden.py"
    assert now == golden


@pytest.mark.parametrize("case", core_golden.CASES)
def test_golden_jobs_are_admitted_and_their_pods_are_restricted(case):
    of = core_golden.CASES[case][0]()
    assert admission.problems(of) == []
    for pod in rendered(of).pods:
        assert list(violations(pod)) == []


def test_rendering_is_deterministic_and_changes_no_input():
    of = core_golden.hsdp_on_gpus()
    before = of.model_dump_json()
    first, second = rendered(of), rendered(of)
    assert first == second
    first.pods[0]["spec"]["containers"][0]["env"].clear()
    first.pods[0]["spec"]["affinity"].clear()
    assert rendered(of) == second
    assert of.model_dump_json() == before


def test_pods_of_a_gang_differ_in_name_and_index_only():
    """They share the rest, also in memory."""
    one, two = rendered(core_golden.hsdp_on_gpus()).pods
    text = json.dumps(two).replace("-1-1", "-1-0")
    found = json.loads(text)
    found["metadata"]["labels"]["hftitan.io/node-index"] = "0"
    container = found["spec"]["containers"][0]
    next(variable for variable in container["env"] if variable["name"] == "HFTITAN_NODE_INDEX")["value"] = "0"
    container["args"] = [word.replace("is_host=false", "is_host=true") for word in container["args"]]
    assert found == one


def test_one_document_for_every_attempt_and_pod():
    of = job(nodes=3)
    assert rendered(of, 1).config == rendered(of, 2).config
    assert rendered(of, 1).service == rendered(of, 2).service
    spec = TrainerSpec.model_validate_json(rendered(of).config["data"]["trainer.json"])
    assert spec.mesh.dp_shard == 3
    assert spec.mesh.world_size == 3
    assert spec.training.mixed_precision == "float32"
    assert spec.training.activation_checkpoint == "none"
    assert spec.training.pipeline_schedule is None


def test_defaults_that_depend_on_the_device_are_resolved_and_the_users_are_kept():
    gpu = job(nodes=1, mesh={"device": "gpu", "gpusPerNode": 2, "pp": 2}, training={"localBatchSize": 2})
    spec = TrainerSpec.model_validate_json(rendered(gpu).config["data"]["trainer.json"]).training
    assert (spec.mixed_precision, spec.activation_checkpoint, spec.pipeline_schedule) == (
        "bfloat16",
        "selective",
        "1F1B",
    )
    said = job(nodes=1, mesh={"device": "gpu"}, training={"mixedPrecision": "float32", "activationCheckpoint": "full"})
    spec = TrainerSpec.model_validate_json(rendered(said).config["data"]["trainer.json"]).training
    assert (spec.mixed_precision, spec.activation_checkpoint) == ("float32", "full")


def test_rendezvous_is_new_for_each_attempt_and_hosted_by_pod_0_alone():
    first, second = (rendered(job(nodes=2), attempt).pods for attempt in (1, 2))
    envs = [env_of(pod) for pod in (*first, *second)]
    assert [e["PET_RDZV_ID"] for e in envs] == ["uid-1", "uid-1", "uid-2", "uid-2"]
    assert [e["PET_RDZV_ENDPOINT"] for e in envs] == ["x-1-0.x.team.svc:29400"] * 2 + ["x-2-0.x.team.svc:29400"] * 2
    confs = [arguments_of(pod)["--rdzv-conf"] for pod in (*first, *second)]
    assert [conf.split(",")[0] for conf in confs] == ["is_host=true", "is_host=false"] * 2


def test_torchrun_gives_ranks_in_the_order_of_the_indices():
    """It sorts the nodes by their addresses as text (torch/distributed/elastic/rendezvous/dynamic_rendezvous.py)."""
    pods = rendered(job(nodes=12)).pods
    addresses = [env_of(pod)["PET_LOCAL_ADDR"] for pod in pods]
    assert addresses == sorted(addresses)
    assert addresses[2] == "x-1-02.x.team.svc"
    assert [pod["metadata"]["name"] for pod in pods] == [pod["spec"]["hostname"] for pod in pods]
    # Each takes the rank of its place: node 0 has the endpoint's store, and its name is resolved already.
    assert env_of(pods[5])["PET_RDZV_ENDPOINT"] == f"{addresses[0]}:29400"


def test_torchrun_lets_the_last_save_finish_before_it_kills():
    pod = rendered(job()).pods[0]
    grace = pod["spec"]["terminationGracePeriodSeconds"]
    assert 0 < grace - int(arguments_of(pod)["--shutdown-timeout"]) <= 30


def test_secrets_are_references_only():
    of = job(
        pod={
            "hfTokenSecret": {"name": "vault-7", "key": "token"},
            "env": [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
        }
    )
    objects = rendered(of).objects
    env = env_of(objects[-1])
    assert env["HF_TOKEN"] == {"secretKeyRef": {"name": "vault-7", "key": "token"}}
    assert env["KEY"] == {"secretKeyRef": {"name": "s", "key": "k"}}
    # Named once in each of the two pods, and nowhere else: neither in the trainer's document nor on a command line.
    assert json.dumps(objects).count("vault-7") == 2
    assert "vault-7" not in json.dumps(objects[:2])
    assert "vault-7" not in json.dumps(objects[-1]["spec"]["containers"][0]["args"])


def test_no_pod_is_best_effort_and_shm_is_part_of_the_request():
    for of in (job(nodes=1), core_golden.hsdp_on_gpus()):
        resources = rendered(of).pods[0]["spec"]["containers"][0]["resources"]
        assert resources["requests"]["memory"]
        assert resources["requests"]["cpu"]
    assert rendered(job(nodes=1)).pods[0]["spec"]["containers"][0]["resources"]["requests"]["memory"] == "2304Mi"


def test_nothing_has_finalizers_and_everything_has_its_owner():
    for thing in rendered(job()).objects:
        assert "finalizers" not in thing["metadata"]
        (owner,) = thing["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"], owner["controller"]) == ("HFTitanJob", "uid", True)


def test_a_users_toleration_replaces_ours_for_the_same_taint():
    mine = {
        "key": "node.kubernetes.io/not-ready",
        "operator": "Exists",
        "effect": "NoExecute",
        "tolerationSeconds": 600,
    }
    tolerations = rendered(job(pod={"tolerations": [mine]})).pods[0]["spec"]["tolerations"]
    assert [t for t in tolerations if t["key"] == mine["key"]] == [mine]


def test_the_pod_cannot_be_killed_by_a_probe():
    container = rendered(job()).pods[0]["spec"]["containers"][0]
    assert "readinessProbe" in container
    assert not {"livenessProbe", "startupProbe"} & set(container)


KUBERNETES = (
    "belongs to Kubernetes, which would act on it; remove it (allowed are app.kubernetes.io/part-of, "
    "app.kubernetes.io/version, cluster-autoscaler.kubernetes.io/safe-to-evict, "
    "kubectl.kubernetes.io/default-container)"
)
SCHEDULERS = "is read by gang schedulers; remove it, and use spec.scheduling"
RUNTIMES = "is read by container runtimes, which would obey it; remove it"
COLLISIONS = [
    (
        {"env": [{"name": "HFTITAN_CONFIG", "value": "/x"}]},
        "spec.pod.env[0].name: HFTITAN_CONFIG is set by the operator; remove it",
    ),
    (
        {"env": [{"name": "PET_NNODES", "value": "9"}]},
        "spec.pod.env[0].name: PET_NNODES is set by the operator; remove it",
    ),
    (
        {"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]},
        "spec.pod.env[1].name: A is set twice; keep one of them",
    ),
    (
        {"hfTokenSecret": {"name": "a"}, "env": [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "b"}}}]},
        "spec.pod.env[0].name: HF_TOKEN comes from spec.pod.hfTokenSecret already; keep one of them",
    ),
    (
        {"env": [{"name": "A", "value": "1", "valueFrom": {"secretKeyRef": {"name": "b"}}}]},
        "spec.pod.env[0]: A has both value and valueFrom; keep one of them",
    ),
    (
        {"env": [{"name": "A", "valueFrom": {}}]},
        "spec.pod.env[0].valueFrom: has 0 sources; give one: secretKeyRef or configMapKeyRef",
    ),
    (
        {"volumes": [{"name": "shm", "emptyDir": {}}]},
        "spec.pod.volumes[0].name: 'shm' is a volume of the operator's; choose another name",
    ),
    (
        {"volumes": [{"name": "a", "emptyDir": {}}, {"name": "a", "emptyDir": {}}]},
        "spec.pod.volumes[1].name: 'a' is given twice; keep one of them",
    ),
    (
        {"volumes": [{"name": "a"}]},
        "spec.pod.volumes[0]: has 0 sources; give exactly one of persistentVolumeClaim, configMap, secret, emptyDir",
    ),
    (
        {"volumes": [{"name": "a", "emptyDir": {}, "secret": {"secretName": "b"}}]},
        "spec.pod.volumes[0]: has 2 sources; give exactly one of persistentVolumeClaim, configMap, secret, emptyDir",
    ),
    (
        {"volumeMounts": [{"name": "a", "mountPath": "/a"}]},
        "spec.pod.volumeMounts[0].name: no volume 'a' in spec.pod.volumes; add it there",
    ),
    (
        {"volumes": [{"name": "a", "emptyDir": {}}], "volumeMounts": [{"name": "a", "mountPath": "/dev/"}]},
        "spec.pod.volumeMounts[0].mountPath: /dev would hide the operator's /dev/shm; mount it elsewhere",
    ),
    (
        {"volumes": [{"name": "a", "emptyDir": {}}], "volumeMounts": [{"name": "a", "mountPath": "/"}]},
        "spec.pod.volumeMounts[0].mountPath: / would hide the operator's /etc/hftitan; mount it elsewhere",
    ),
    (
        {"volumes": [{"name": "a", "emptyDir": {}}], "volumeMounts": [{"name": "a", "mountPath": "/etc/hftitan/x"}]},
        "spec.pod.volumeMounts[0].mountPath: /etc/hftitan/x would hide the operator's /etc/hftitan; mount it elsewhere",
    ),
    (
        {"volumes": [{"name": "a", "emptyDir": {}}], "volumeMounts": [{"name": "a", "mountPath": "/a/../dev/shm"}]},
        "spec.pod.volumeMounts[0].mountPath: /a/../dev/shm has ':' or '..' in it; give a plain absolute path",
    ),
    (
        {
            "volumes": [{"name": "a", "emptyDir": {}}],
            "volumeMounts": [{"name": "a", "mountPath": "/a"}, {"name": "a", "mountPath": "/a/"}],
        },
        "spec.pod.volumeMounts[1].mountPath: /a is mounted twice; keep one of them",
    ),
    *(
        (
            {"volumes": [{"name": "a", "emptyDir": {}}], "volumeMounts": [{"name": "a", "mountPath": path}]},
            f"spec.pod.volumeMounts[0].mountPath: {message}; mount it elsewhere",
        )
        for path, message in (
            ("/dev//shm", "/dev/shm would hide the operator's /dev/shm"),
            ("/./dev/shm/.", "/dev/shm would hide the operator's /dev/shm"),
            ("//tmp", "/tmp would hide the operator's /tmp"),
            ("/dev/termination-log", "/dev/termination-log would hide the operator's /dev/termination-log"),
            ("/proc/self", "/proc/self belongs to the kernel"),
            ("/sys", "/sys belongs to the kernel"),
        )
    ),
    (
        {"env": [{"name": "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "value": "0"}]},
        "spec.pod.env[0].name: TORCH_DISABLE_SHARE_RDZV_TCP_STORE is set by the operator; remove it",
    ),
    *(
        ({field: {key: "y"}}, f'spec.pod.{field}["{key}"]: {message}')
        for field, key, message in (
            ("labels", "hftitan.io/job", "is set by the operator; remove it"),
            ("labels", "app.kubernetes.io/managed-by", "is set by the operator; remove it"),
            ("labels", "kueue.x-k8s.io/queue-name", SCHEDULERS),
            ("labels", "scheduling.x-k8s.io/pod-group", SCHEDULERS),
            ("labels", "kai.scheduler/queue", SCHEDULERS),
            ("annotations", "scheduling.k8s.io/group-name", SCHEDULERS),
            ("annotations", "scheduling.volcano.sh/queue-name", SCHEDULERS),
            ("annotations", "pod-group-name", SCHEDULERS),
            ("labels", "batch.kubernetes.io/job-name", KUBERNETES),
            ("annotations", "hftitan.io/x", "is set by the operator; remove it"),
            ("annotations", "container.apparmor.security.beta.kubernetes.io/trainer", KUBERNETES),
            ("annotations", "seccomp.security.alpha.kubernetes.io/pod", KUBERNETES),
            ("annotations", "container.seccomp.security.alpha.kubernetes.io/trainer", KUBERNETES),
            ("annotations", "cdi.k8s.io/gpu", KUBERNETES),
            ("annotations", "devices.nri.io/pod", RUNTIMES),
            ("annotations", "io.kubernetes.cri-o.Devices", RUNTIMES),
            ("annotations", "io.katacontainers.config.hypervisor.path", RUNTIMES),
        )
    ),
]


@pytest.mark.parametrize(("pod", "message"), COLLISIONS)
def test_what_collides_with_ours_is_refused_by_admission_and_by_render(pod, message):
    of = job(pod=pod)
    assert message in [str(problem) for problem in admission.problems(of)]
    with pytest.raises(SpecError) as error:
        rendered(of)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("field", "key"),
    [
        ("labels", "app.kubernetes.io/part-of"),
        ("labels", "team"),
        ("labels", "example.com/kubernetes.io"),
        ("labels", "notkubernetes.io/x"),
        ("annotations", "cluster-autoscaler.kubernetes.io/safe-to-evict"),
        ("annotations", "k8s.v1.cni.cncf.io/networks"),
        ("annotations", "sidecar.istio.io/inject"),
        ("annotations", "prometheus.io/scrape"),
    ],
)
def test_labels_and_annotations_of_others_are_the_users(field, key):
    of = job(pod={field: {key: "x"}})
    assert admission.problems(of) == []
    assert rendered(of).pods[0]["metadata"][field][key] == "x"


def test_a_variable_of_ours_that_is_no_default_cannot_be_set():
    """Two of one name: the last would win."""
    defaults = {"HF_HOME", "HOME", "OMP_NUM_THREADS", "PYTHONUNBUFFERED"}
    for name in env_of(rendered(job()).pods[0]):
        refused = bool(admission.problems(job(pod={"env": [{"name": name, "value": "x"}]})))
        assert refused == (name not in defaults), name


def test_a_priority_class_of_the_clusters_own_is_refused():
    of = job(scheduling={"priorityClass": "system-node-critical"})
    message = (
        "spec.scheduling.priorityClass: system-node-critical would let the job push out what the cluster runs on; "
        "use a PriorityClass for jobs"
    )
    assert [str(p) for p in admission.problems(of)] == [message]
    with pytest.raises(SpecError, match="push out what the cluster runs on"):
        rendered(of)


def test_a_port_that_is_torchruns_is_refused():
    of = job(monitoring={"port": 29400})
    assert [str(p) for p in admission.problems(of)] == [
        "spec.monitoring.port: 29400 is torchrun's rendezvous port; use another, for example 9400"
    ]


def test_every_problem_is_told_at_once():
    of = job(name="Bad", meta={"name": "Bad_Name"}, mesh={"dpShard": 5}, pod={"labels": {"hftitan.io/x": "y"}})
    assert [problem.path for problem in admission.problems(of)] == [
        "metadata.name",
        "spec.mesh.dpShard",
        'spec.pod.labels["hftitan.io/x"]',
    ]
    only_resources = job(pod={"resources": {"limits": {"memory": "1Mi"}}})
    assert [problem.path for problem in admission.problems(only_resources)] == ["spec.pod.resources.limits.memory"]
