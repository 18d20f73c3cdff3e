"""Hostile jobs: fields about their pods."""

from __future__ import annotations

from typing import Any

from hostile_job import NOBODY, OPERATOR, SERVER, Hostile, job, nested

MIB = 1024 * 1024
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


def pod(**fields: Any) -> dict[str, Any]:
    return job(pod=fields)


def env(*variables: dict[str, Any]) -> dict[str, Any]:
    return pod(env=list(variables))


def var(name: str, value: Any = "x") -> dict[str, Any]:
    return {"name": name, "value": value}


def mounted(path: str, **mount: Any) -> dict[str, Any]:
    return pod(volumes=[{"name": "v", "emptyDir": {}}], volumeMounts=[{"name": "v", "mountPath": path, **mount}])


def affine(**node_affinity: Any) -> dict[str, Any]:
    return pod(affinity={"nodeAffinity": node_affinity})


FIELDS = [
    Hostile(f"pod-{field}", pod(**{field: value}), SERVER, f"spec.pod.{field}: unknown field", ("strict",))
    for field, value in {
        "hostNetwork": True,
        "hostPID": True,
        "serviceAccountName": "default",
        "automountServiceAccountToken": True,
        "securityContext": {"runAsUser": 0},
        "initContainers": [{"name": "x", "image": "x", "securityContext": {"privileged": True}}],
        "containers": [{"name": "trainer", "command": ["sh"]}],
        "command": ["sh", "-c", "id"],
        "podSpecPatch": '{"hostNetwork": true}',
        "nodeName": "control-plane-0",
        "schedulerName": "mine",
        "restartPolicy": "Always",
        "ports": [{"hostPort": 22}],
    }.items()
]
ENV = [
    *(
        Hostile(f"env-name-{name}", env(var(text)), SERVER, "spec.pod.env[0].name")
        for name, text in {
            "equals": "A=B",
            "newline": "A\nB",
            "empty": "",
            "digit": "1A",
            "space": "A B",
            "umlaut": "Ä",
            "254": "A" * 254,
        }.items()
    ),
    *(
        Hostile(f"env-{name}", env(var(name)), OPERATOR, "set by the operator")
        for name in ("PET_NNODES", "HFTITAN_CONFIG", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE")
    ),
    *(
        Hostile(f"env-{name}", env(var("A"), var(name)), SERVER, f"env[1].name: {name} is set by torchrun", ("cel",))
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "ROLE_NAME", "MASTER_ADDR", "TORCHELASTIC_RUN_ID")
    ),
    # Harmless: they affect only the user's own container.
    *(Hostile(f"env-{name}", env(var(name, "/x.so")), NOBODY) for name in ("LD_PRELOAD", "PYTHONPATH", "PATH", "HOME")),
    Hostile("env-twice", env(var("A"), var("A")), SERVER, "A is set twice"),
    Hostile("env-10000", env(*(var(f"A{i}") for i in range(10_000))), SERVER, "use at most 128"),
    Hostile("env-value-1-mib", env(var("A", "x" * MIB)), SERVER, "spec.pod.env[0].value"),
    Hostile("env-288-kib", env(*(var(f"A{i}", "x" * 32_768) for i in range(9))), OPERATOR, "use at most 262144"),
    Hostile("env-value-number", env(var("A", 1)), SERVER, "put it in quotes"),
    Hostile("env-value-nul", env(var("A", "a\0b")), OPERATOR, "U+0000"),
    Hostile("env-value-lines", env(var("A", "two\nlines\t\u200b😀")), NOBODY),
    Hostile("env-value-reference", env(var("A", "$(HF_TOKEN)$(PET_NNODES)")), NOBODY),
    Hostile("env-without-value", env({"name": "A"}), OPERATOR, "A has no value"),
    Hostile("env-token", env(var("HF_TOKEN", "secret")), OPERATOR, "spec.pod.hfTokenSecret"),
    Hostile("env-token-elsewhere", env(var("X", "hf_" + "aB3" * 10)), OPERATOR, "looks like a Hugging Face token"),
    Hostile("env-no-source", env({"name": "A", "valueFrom": {}}), OPERATOR, "has 0 sources"),
    Hostile(
        "env-two-sources",
        env({"name": "A", "valueFrom": {"secretKeyRef": {"name": "a"}, "configMapKeyRef": {"name": "b", "key": "k"}}}),
        OPERATOR,
        "has 2 sources",
    ),
    Hostile(
        "env-value-and-source",
        env({"name": "A", "value": "x", "valueFrom": {"secretKeyRef": {"name": "a"}}}),
        OPERATOR,
        "both value and valueFrom",
    ),
    Hostile(
        "env-field-of-the-pod",
        env({"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.serviceAccountName"}}}),
        SERVER,
        "valueFrom.fieldRef: unknown field",
        ("strict",),
    ),
    Hostile(
        "token-twice",
        pod(hfTokenSecret={"name": "a"}, env=[{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "b"}}}]),
        OPERATOR,
        "keep one of them",
    ),
    Hostile("secret-of-another-namespace", pod(hfTokenSecret={"name": "kube-system/x"}), SERVER, "hfTokenSecret.name"),
    Hostile("secret-key-up", pod(hfTokenSecret={"name": "a", "key": "../x"}), SERVER, "hfTokenSecret.key"),
]
VOLUMES = [
    *(
        Hostile(f"volume-{kind}", pod(volumes=[{"name": "v", kind: source}]), SERVER, f"{kind}: unknown", ("strict",))
        for kind, source in {
            "hostPath": {"path": "/"},
            "nfs": {"server": "a", "path": "/"},
            "csi": {"driver": "x"},
            "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]},
        }.items()
    ),
    Hostile(
        "volume-name-of-the-operator",
        pod(volumes=[{"name": "shm", "emptyDir": {}}]),
        OPERATOR,
        "volume of the operator",
    ),
    Hostile("volume-without-source", pod(volumes=[{"name": "v"}]), OPERATOR, "has 0 sources"),
    Hostile(
        "volume-with-two-sources",
        pod(volumes=[{"name": "v", "emptyDir": {}, "secret": {"secretName": "s"}}]),
        OPERATOR,
        "has 2 sources",
    ),
    Hostile("volume-twice", pod(volumes=[{"name": "v", "emptyDir": {}}] * 2), SERVER, "defined twice"),
    Hostile("volume-33", pod(volumes=[{"name": f"v{i}", "emptyDir": {}} for i in range(33)]), SERVER, "use at most 32"),
    Hostile("mount-without-volume", pod(volumeMounts=[{"name": "v", "mountPath": "/v"}]), OPERATOR, "no volume 'v'"),
    *(
        Hostile(f"mount-{name}", mounted(path), OPERATOR, message)
        for name, path, message in (
            ("up", "/a/../dev/shm", "'..'"),
            ("colon", "/a:/b", "':'"),
            ("root", "/", "would hide"),
            ("dev", "/dev", "would hide"),
            ("shm-in-disguise", "/dev//shm/.", "would hide"),
            ("tmp-in-disguise", "//tmp", "would hide"),
            ("config", "/etc/hftitan/x", "would hide"),
            ("etc", "/etc/", "would hide"),
            ("termination-log", "/dev/termination-log", "would hide"),
            ("proc", "/proc/1", "belongs to the kernel"),
            ("sys", "/sys", "belongs to the kernel"),
            ("zero-width", "/a\u200b", "U+200B"),
        )
    ),
    Hostile("mount-relative", mounted("a/b"), SERVER, "mountPath"),
    Hostile("mount-newline", mounted("/a\n"), SERVER, "mountPath"),
    Hostile("mount-1-mib", mounted("/" + "a" * MIB), SERVER, "mountPath"),
    Hostile("mount-part-up", mounted("/v", subPath="../../x"), SERVER, "subPath"),
    Hostile("mount-part-absolute", mounted("/v", subPath="/etc"), SERVER, "subPath"),
    Hostile("mount-part-by-variable", mounted("/v", subPathExpr="$(X)"), SERVER, "unknown field", ("strict",)),
    Hostile("mount-propagation", mounted("/v", mountPropagation="Bidirectional"), SERVER, "unknown", ("strict",)),
]
KEYS = [
    *(
        Hostile(f"label-{key}", pod(labels={key: "x"}), OPERATOR, f'spec.pod.labels["{key}"]')
        for key in (
            "hftitan.io/job",
            "hftitan.io/anything",
            "app.kubernetes.io/managed-by",
            "app.kubernetes.io/instance",
            "kueue.x-k8s.io/queue-name",
            "pod-security.kubernetes.io/enforce",
        )
    ),
    *(
        Hostile(f"annotation-{key}", pod(annotations={key: "unconfined"}), OPERATOR, f'spec.pod.annotations["{key}"]')
        for key in (
            "hftitan.io/attempt",
            "container.apparmor.security.beta.kubernetes.io/trainer",
            "seccomp.security.alpha.kubernetes.io/pod",
            "container.seccomp.security.alpha.kubernetes.io/trainer",
            "kueue.x-k8s.io/pod-group-total-count",
            "cdi.k8s.io/gpu",
            "devices.nri.io/container.trainer",
            "io.kubernetes.cri-o.Devices",
            "io.katacontainers.config.hypervisor.path",
        )
    ),
    Hostile("label-comma", pod(labels={"team": "a,hftitan.io/job=b"}), OPERATOR, "spec.pod.labels.team"),
    Hostile("label-equals", pod(labels={"team": "a=b"}), OPERATOR, "not a label value"),
    Hostile("label-zero-width", pod(labels={"team": "a\u200bb"}), OPERATOR, "spec.pod.labels.team"),
    Hostile("label-key-space", pod(labels={"a b": "x"}), OPERATOR, "not a Kubernetes key"),
    Hostile("label-key-1-mib", pod(labels={"a" * MIB: "x"}), OPERATOR, "1048576 characters"),
    Hostile("label-key-newline", pod(labels={"hftitan.io/\n": "x"}), OPERATOR, "set by the operator"),
    Hostile("label-number", pod(labels={"a": 1}), SERVER, "spec.pod.labels.a"),
    Hostile("labels-65", pod(labels={f"k{i}": "" for i in range(65)}), SERVER, "use at most 64"),
    Hostile("annotation-1025", pod(annotations={"a": "x" * 1025}), SERVER, "spec.pod.annotations.a"),
    Hostile("annotation-harmless", pod(annotations={"example.com/note": "zwei\nZeilen, 中文 😀"}), NOBODY),
]
PLACEMENT = [
    Hostile("tolerations-10000", pod(tolerations=[{"operator": "Exists"}] * 10_000), SERVER, "use at most 64"),
    Hostile("tolerates-everything", pod(tolerations=[{"operator": "Exists"}]), NOBODY),
    Hostile("toleration-operator", pod(tolerations=[{"key": "a", "operator": "In"}]), SERVER, "operator"),
    Hostile(
        "toleration-key", pod(tolerations=[{"key": "a b", "operator": "Exists"}]), OPERATOR, "not a Kubernetes key"
    ),
    Hostile("selector-value", pod(nodeSelector={"a": "b,c"}), OPERATOR, "spec.pod.nodeSelector.a"),
    Hostile("affinity-nested-200", pod(affinity=nested(200)), SERVER, "spec.pod.affinity.a: unknown", ("strict",)),
    Hostile("affinity-nested-inside", affine(**{REQUIRED: nested(100)}), SERVER, "nodeSelectorTerms: is required"),
    Hostile("affinity-text", pod(affinity="{}"), SERVER, "spec.pod.affinity"),
    Hostile(
        "affinity-operator",
        affine(**{REQUIRED: {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Like"}]}]}}),
        SERVER,
        "operator",
    ),
    Hostile(
        "affinity-of-17-kib",
        affine(
            **{
                REQUIRED: {
                    "nodeSelectorTerms": [
                        {"matchExpressions": [{"key": "a", "operator": "In", "values": ["v" * 63] * 64}] * 4}
                    ]
                }
            }
        ),
        OPERATOR,
        "spec.pod.affinity: 17445 bytes",
    ),
    Hostile(
        "priority-class-of-the-system",
        job(scheduling={"priorityClass": "system-node-critical"}),
        OPERATOR,
        "preempt system pods",
    ),
    Hostile("priority-space", job(scheduling={"priorityClass": "a b"}), SERVER, "spec.scheduling.priorityClass"),
    Hostile("topology-key-odd", job(scheduling={"topologyKey": "../x y"}), OPERATOR, "spec.scheduling.topologyKey"),
    Hostile("gang-unknown", job(scheduling={"gang": "mine"}), SERVER, "spec.scheduling.gang"),
    Hostile("cache-of-another-namespace", pod(cacheVolume="kube-system/models"), SERVER, "spec.pod.cacheVolume"),
    Hostile("runtime-class-up", pod(runtimeClassName="../runc"), SERVER, "spec.pod.runtimeClassName"),
    Hostile(
        "runtime-class-unknown", pod(runtimeClassName="no.such.class"), NOBODY
    ),  # a server may know the class or reject the pod
]
RESOURCES = [
    *(
        Hostile(f"image-{name}", pod(image=image), SERVER, "spec.pod.image")
        for name, image in (("space", "a b"), ("newline", "a\nb"), ("zero-width", "a\u200bb"), ("no-break", "a\xa0b"))
    ),
    Hostile("image-empty", pod(image=""), SERVER, "spec.pod.image"),
    Hostile("image-1-mib", pod(image="a" * MIB), SERVER, "spec.pod.image"),
    Hostile("image-shell", pod(image="$(reboot);`id`"), NOBODY),  # the kubelet rejects it as InvalidImageName
    Hostile("pull-policy", pod(imagePullPolicy="Sometimes"), SERVER, "spec.pod.imagePullPolicy"),
    Hostile("gpu-cpu", pod(gpuResource="cpu"), SERVER, "spec.pod.gpuResource"),
    Hostile("gpu-of-kubernetes", pod(gpuResource="batch.kubernetes.io/x"), OPERATOR, "spec.pod.gpuResource"),
    Hostile("gpu-quota", pod(gpuResource="requests.nvidia.com/gpu"), OPERATOR, "is not a device"),
    Hostile("gpu-dots", pod(gpuResource="../.."), OPERATOR, "is not a device"),
    Hostile("gpus-beside-the-mesh", pod(resources={"limits": {"nvidia.com/gpu": 8}}), OPERATOR, "gpusPerNode"),
    Hostile("quantity-negative", pod(resources={"limits": {"cpu": "-1"}}), SERVER, "spec.pod.resources.limits.cpu"),
    Hostile("quantity-exponent", pod(resources={"limits": {"cpu": "1e400"}}), SERVER, "spec.pod.resources.limits.cpu"),
    Hostile("quantity-float", pod(resources={"limits": {"cpu": 0.5}}), SERVER, "put it in quotes"),
    Hostile("quantity-32-digits", pod(resources={"limits": {"cpu": "9" * 32}}), OPERATOR, "too large for Kubernetes"),
    Hostile("memory-1-mib", pod(resources={"limits": {"memory": "1Mi"}}), OPERATOR, "limits.memory"),
    Hostile("over-the-limit", pod(resources={"requests": {"cpu": 2}, "limits": {"cpu": 1}}), OPERATOR, "use at most 1"),
    Hostile("resource-misspelt", pod(resources={"limits": {"memroy": "1Gi"}}), OPERATOR, "'memroy' is not a resource"),
    Hostile("shm-zero", pod(shmSize="0"), OPERATOR, "spec.pod.shmSize"),
    Hostile("shm-half-a-byte", pod(shmSize="500m"), OPERATOR, "spec.pod.shmSize"),
    Hostile("shm-of-32-digits", pod(shmSize="9" * 32), OPERATOR, "spec.pod.shmSize"),
]  # fmt: skip
TABLE = [*FIELDS, *ENV, *VOLUMES, *KEYS, *PLACEMENT, *RESOURCES]
