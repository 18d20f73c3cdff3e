"""Whole objects compared with golden files, and properties of every rendered object."""

from __future__ import annotations

import json

import core_golden
import pytest
import yaml
from core_builders import job
from pod_security import violations

from hftitan_api.mesh import SpecError, plan
from hftitan_api.wire import TrainerSpec
from hftitan_operator.core.rendering import admission
from hftitan_operator.core.rendering.render import render


def rendered(of, attempt=1):
    return render(of, plan(of.spec), attempt)


def env_of(pod):
    return {var["name"]: var.get("value", var.get("valueFrom")) for var in pod["spec"]["containers"][0]["env"]}


def arguments_of(pod):
    words = (word.partition("=") for word in pod["spec"]["containers"][0]["args"])
    return {name: value for name, _, value in words}


@pytest.mark.parametrize("case", core_golden.CASES)
def test_rendered_objects_equal_the_golden_files(case):
    golden = (core_golden.FOLDER / f"{case}.yaml").read_text()
    now = core_golden.rendered(case)
    assert list(yaml.safe_load_all(now)) == list(yaml.safe_load_all(golden)), "python tests/core/core_golden.py"
    assert now == golden


@pytest.mark.parametrize("case", core_golden.CASES)
def test_golden_jobs_are_valid_and_their_pods_are_restricted(case):
    of = core_golden.CASES[case][0]()
    assert admission.problems(of) == []
    for pod in rendered(of).pods:
        assert list(violations(pod)) == []


def test_rendering_is_deterministic_and_does_not_change_its_input():
    of = core_golden.hsdp_on_gpus()
    before = of.model_dump_json()
    first, second = rendered(of), rendered(of)
    assert first == second
    first.pods[0]["spec"]["containers"][0]["env"].clear()
    first.pods[0]["spec"]["affinity"].clear()
    assert rendered(of) == second
    assert of.model_dump_json() == before


def test_pods_of_a_gang_differ_only_in_name_and_index():
    one, two = rendered(core_golden.hsdp_on_gpus()).pods
    text = json.dumps(two).replace("-1-1", "-1-0")
    found = json.loads(text)
    found["metadata"]["labels"]["hftitan.io/node-index"] = "0"
    container = found["spec"]["containers"][0]
    next(variable for variable in container["env"] if variable["name"] == "HFTITAN_NODE_INDEX")["value"] = "0"
    container["args"] = [word.replace("is_host=false", "is_host=true") for word in container["args"]]
    assert found == one


def test_all_attempts_and_pods_have_the_same_config_and_service():
    of = job(nodes=3)
    assert rendered(of, 1).config == rendered(of, 2).config
    assert rendered(of, 1).service == rendered(of, 2).service
    spec = TrainerSpec.model_validate_json(rendered(of).config["data"]["trainer.json"])
    assert spec.mesh.dp_shard == 3
    assert spec.mesh.world_size == 3
    assert spec.training.mixed_precision == "float32"
    assert spec.training.activation_checkpoint == "none"
    assert spec.training.pipeline_schedule is None


def test_device_dependent_defaults_are_resolved_and_user_values_kept():
    gpu = job(nodes=1, mesh={"device": "gpu", "gpusPerNode": 2, "pp": 2}, training={"localBatchSize": 2})
    spec = TrainerSpec.model_validate_json(rendered(gpu).config["data"]["trainer.json"]).training
    assert (spec.mixed_precision, spec.activation_checkpoint, spec.pipeline_schedule) == (
        "bfloat16",
        "selective",
        "1F1B",
    )
    explicit = job(
        nodes=1, mesh={"device": "gpu"}, training={"mixedPrecision": "float32", "activationCheckpoint": "full"}
    )
    spec = TrainerSpec.model_validate_json(rendered(explicit).config["data"]["trainer.json"]).training
    assert (spec.mixed_precision, spec.activation_checkpoint) == ("float32", "full")


def test_each_attempt_has_a_new_rendezvous_on_pod_0():
    first, second = (rendered(job(nodes=2), attempt).pods for attempt in (1, 2))
    envs = [env_of(pod) for pod in (*first, *second)]
    assert [e["PET_RDZV_ID"] for e in envs] == ["uid-1", "uid-1", "uid-2", "uid-2"]
    assert [e["PET_RDZV_ENDPOINT"] for e in envs] == ["x-1-0.x.team.svc:29400"] * 2 + ["x-2-0.x.team.svc:29400"] * 2
    confs = [arguments_of(pod)["--rdzv-conf"] for pod in (*first, *second)]
    assert [conf.split(",")[0] for conf in confs] == ["is_host=true", "is_host=false"] * 2


def test_torchrun_assigns_ranks_in_the_order_of_the_indices():
    """torchrun sorts nodes by their addresses as text (torch/distributed/elastic/rendezvous/dynamic_rendezvous.py)."""
    pods = rendered(job(nodes=12)).pods
    addresses = [env_of(pod)["PET_LOCAL_ADDR"] for pod in pods]
    assert addresses == sorted(addresses)
    assert addresses[2] == "x-1-02.x.team.svc"
    assert [pod["metadata"]["name"] for pod in pods] == [pod["spec"]["hostname"] for pod in pods]
    # Node 0 gets rank 0 and hosts the store of the endpoint.
    assert env_of(pods[5])["PET_RDZV_ENDPOINT"] == f"{addresses[0]}:29400"


def test_torchrun_waits_for_the_last_save_before_it_kills_workers():
    pod = rendered(job()).pods[0]
    grace = pod["spec"]["terminationGracePeriodSeconds"]
    assert 0 < grace - int(arguments_of(pod)["--shutdown-timeout"]) <= 30


def test_secrets_are_only_referenced():
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
    # The Secret's name is once in each of the two pods, and not in the trainer's document or on a command line.
    assert json.dumps(objects).count("vault-7") == 2
    assert "vault-7" not in json.dumps(objects[:2])
    assert "vault-7" not in json.dumps(objects[-1]["spec"]["containers"][0]["args"])


def test_no_pod_is_best_effort_and_shm_is_part_of_the_request():
    for of in (job(nodes=1), core_golden.hsdp_on_gpus()):
        resources = rendered(of).pods[0]["spec"]["containers"][0]["resources"]
        assert resources["requests"]["memory"]
        assert resources["requests"]["cpu"]
    assert rendered(job(nodes=1)).pods[0]["spec"]["containers"][0]["resources"]["requests"]["memory"] == "2304Mi"


def test_objects_have_no_finalizers_and_the_job_as_owner():
    for thing in rendered(job()).objects:
        assert "finalizers" not in thing["metadata"]
        (owner,) = thing["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"], owner["controller"]) == ("HFTitanJob", "uid", True)


def test_a_users_toleration_replaces_the_operators_for_the_same_taint():
    mine = {
        "key": "node.kubernetes.io/not-ready",
        "operator": "Exists",
        "effect": "NoExecute",
        "tolerationSeconds": 600,
    }
    tolerations = rendered(job(pod={"tolerations": [mine]})).pods[0]["spec"]["tolerations"]
    assert [t for t in tolerations if t["key"] == mine["key"]] == [mine]


def test_the_pod_has_only_a_readiness_probe():
    container = rendered(job()).pods[0]["spec"]["containers"][0]
    assert "readinessProbe" in container
    assert not {"livenessProbe", "startupProbe"} & set(container)


KUBERNETES = (
    "is reserved for Kubernetes; remove it (allowed are app.kubernetes.io/part-of, "
    "app.kubernetes.io/version, cluster-autoscaler.kubernetes.io/safe-to-evict, "
    "kubectl.kubernetes.io/default-container)"
)
SCHEDULERS = "is read by gang schedulers; remove it, and use spec.scheduling"
RUNTIMES = "changes how container runtimes run the pod; remove it"
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
        "spec.pod.env[0].name: HF_TOKEN is already set by spec.pod.hfTokenSecret; keep one of them",
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
        "spec.pod.volumes[0].name: 'shm' is a volume of the operator; choose another name",
    ),
    (
        {"volumes": [{"name": "a", "emptyDir": {}}, {"name": "a", "emptyDir": {}}]},
        "spec.pod.volumes[1].name: 'a' is defined twice; keep one of them",
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
        "spec.pod.volumeMounts[0].name: spec.pod.volumes has no volume 'a'; add it there",
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
        "spec.pod.volumeMounts[0].mountPath: /a/../dev/shm contains ':' or '..'; use a plain absolute path",
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
def test_admission_and_render_reject_values_that_conflict_with_the_operator(pod, message):
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
def test_other_labels_and_annotations_are_allowed(field, key):
    of = job(pod={field: {key: "x"}})
    assert admission.problems(of) == []
    assert rendered(of).pods[0]["metadata"][field][key] == "x"


def test_a_job_can_override_only_the_variables_that_are_defaults():
    """With two variables of one name, the container gets the last one."""
    defaults = {"HF_HOME", "HOME", "OMP_NUM_THREADS", "PYTHONUNBUFFERED"}
    for name in env_of(rendered(job()).pods[0]):
        rejected = bool(admission.problems(job(pod={"env": [{"name": name, "value": "x"}]})))
        assert rejected == (name not in defaults), name


def test_a_system_priority_class_is_rejected():
    of = job(scheduling={"priorityClass": "system-node-critical"})
    message = (
        "spec.scheduling.priorityClass: system-node-critical would let the job preempt system pods; "
        "use another PriorityClass"
    )
    assert [str(p) for p in admission.problems(of)] == [message]
    with pytest.raises(SpecError, match="would let the job preempt system pods"):
        rendered(of)


def test_the_rendezvous_port_is_rejected_for_metrics():
    of = job(monitoring={"port": 29400})
    assert [str(p) for p in admission.problems(of)] == [
        "spec.monitoring.port: 29400 is torchrun's rendezvous port; use another, for example 9400"
    ]


def test_all_problems_are_reported_at_once():
    of = job(name="Bad", meta={"name": "Bad_Name"}, mesh={"dpShard": 5}, pod={"labels": {"hftitan.io/x": "y"}})
    assert [problem.path for problem in admission.problems(of)] == [
        "metadata.name",
        "spec.mesh.dpShard",
        'spec.pod.labels["hftitan.io/x"]',
    ]
    only_resources = job(pod={"resources": {"limits": {"memory": "1Mi"}}})
    assert [problem.path for problem in admission.problems(only_resources)] == ["spec.pod.resources.limits.memory"]
