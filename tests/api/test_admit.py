"""Rules between fields, and fields that are not supported yet: each mistake with its words."""

from __future__ import annotations

import pytest

from hftitan_api.admit import JOB_NAME_LIMIT, admit
from hftitan_api.load import review
from hftitan_operator.core import naming


def _said(job, config=None):
    loaded = review(job, config)
    assert loaded.job is not None, loaded.problems
    assert [str(problem) for problem in loaded.problems] == [str(error) for error in admit(loaded.job, config)]
    return [str(problem) for problem in loaded.problems]


FOLDER = "/models/llama"
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
MISTAKES = {
    "no data": (
        {"dataset": {"path": None}},
        ["spec.dataset: names no data; give name (a hub id) or path (a file or folder)"],
    ),
    "two sources of data": ({"dataset": {"name": "a/b"}}, ["spec.dataset: has both name and path; keep one of them"]),
    "a subset of a path": (
        {"dataset": {"config": "en"}},
        ["spec.dataset.config: belongs to a hub dataset, and this one is a path; remove it"],
    ),
    "text and chats": (
        {"dataset": {"textField": "text", "messagesField": "messages"}},
        [
            "spec.dataset: has both textField and messagesField; keep textField for plain text "
            "or messagesField for chats"
        ],
    ),
    "a way out of the data": (
        {"dataset": {"path": "/data/../etc"}},
        ["spec.dataset.path: /data/../etc has '..' in it; give a plain absolute path"],
    ),
    "a way out of the models": (
        {"model": {"name": "/models/../x"}},
        ["spec.model.name: /models/../x has '..' in it; give a plain absolute path"],
    ),
    "revision of a folder": (
        {"model": {"name": FOLDER, "revision": "main"}},
        [f"spec.model.revision: {FOLDER} is a folder, which has no revisions; remove it"],
    ),
    "another shape for trained weights": (
        {"model": {"overrides": {"num_hidden_layers": 2}}},
        [
            "spec.model.overrides.num_hidden_layers: changes the shape of weights, and the pretrained ones would not "
            "fit; use initialize: random"
        ],
    ),
    "another model": (
        {"model": {"overrides": {"model_type": "mamba"}, "initialize": "random"}},
        ["spec.model.overrides.model_type: says which model it is; name another model instead"],
    ),
    "a variable without value": (
        {"pod": {"env": [{"name": "A"}]}},
        ["spec.pod.env[0]: A has no value; give value or valueFrom"],
    ),
    "a token in the job": (
        {"pod": {"env": [{"name": "HF_TOKEN", "value": "x"}]}},
        ["spec.pod.env[0].value: HF_TOKEN would stand in the job for all to read; use spec.pod.hfTokenSecret"],
    ),
    "a token by another name": (
        {"pod": {"env": [{"name": "A", "value": "x"}, {"name": "MINE", "value": "hf_" + "a1B2" * 8}]}},
        ["spec.pod.env[1].value: MINE looks like a Hugging Face token; use spec.pod.hfTokenSecret"],
    ),
    "a push of nothing by nobody": (
        {"checkpoint": {"exportHF": False, "pushToHub": {"repo": "acme/x"}}},
        [
            "spec.checkpoint.pushToHub: pushes the export to acme/x, and exportHF is false; set it to true",
            "spec.pod.hfTokenSecret: is needed for spec.checkpoint.pushToHub; name a Secret with a token that may "
            "write to acme/x",
        ],
    ),
    "a push": (
        {"checkpoint": {"pushToHub": {"repo": "acme/x"}}, "pod": {"hfTokenSecret": {"name": "hub"}}},
        [],
    ),
    "a label's key": (
        {"pod": {"labels": {"a b": "x"}}},
        ["spec.pod.labels[\"a b\"]: 'a b' is no Kubernetes key; write name or example.com/name"],
    ),
    "a label's value": (
        {"pod": {"nodeSelector": {"pool": "-x"}}},
        [
            "spec.pod.nodeSelector.pool: '-x' is no label value; use at most 63 letters, digits, '-', '_' and '.', "
            "with a letter or digit at both ends"
        ],
    ),
    "an annotation's key": (
        {"pod": {"annotations": {"Example.com/x": "any text: fine"}}},
        [
            "spec.pod.annotations[\"Example.com/x\"]: 'Example.com/x' is no Kubernetes key; "
            "write name or example.com/name"
        ],
    ),
    "a toleration of any value": (
        {"pod": {"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}},
        ["spec.pod.tolerations[0].value: operator Exists takes no value; remove it, or use operator: Equal"],
    ),
    "a toleration of nothing": (
        {"pod": {"tolerations": [{"effect": "NoSchedule"}]}},
        [
            "spec.pod.tolerations[0].key: is empty; name the taint, or use operator: Exists to tolerate all of them"
        ],
    ),
    "a toleration in time": (
        {"pod": {"tolerations": [{"key": "a", "value": "b", "tolerationSeconds": 3}]}},
        [
            "spec.pod.tolerations[0].tolerationSeconds: works with effect: NoExecute alone; set it, or remove this"
        ],
    ),
    "GPUs beside the mesh": (
        {"pod": {"resources": {"limits": {"nvidia.com/gpu": 8}}}},
        ['spec.pod.resources.limits["nvidia.com/gpu"]: comes from spec.mesh.gpusPerNode; remove it'],
    ),
    "a resource of no name": (
        {"pod": {"resources": {"requests": {"c p u": "1"}}}},
        [
            "spec.pod.resources.requests[\"c p u\"]: 'c p u' is no resource; "
            "write for example cpu, memory or example.com/nic"
        ],
    ),
    "a resource of Kubernetes' own, misspelt": (
        {"pod": {"resources": {"limits": {"memroy": "1Gi", "hugepages-2Mi": "1Gi", "batch.kubernetes.io/x": 1}}}},
        [
            "spec.pod.resources.limits.memroy: 'memroy' is no resource; "
            "write for example cpu, memory or example.com/nic",
            "spec.pod.resources.limits[\"batch.kubernetes.io/x\"]: 'batch.kubernetes.io/x' is no resource; "
            "write for example cpu, memory or example.com/nic",
        ],
    ),
    "a device that is none": (
        {"pod": {"gpuResource": "requests.nvidia.com/gpu"}},
        [
            "spec.pod.gpuResource: 'requests.nvidia.com/gpu' is no device; write what its plugin calls it, "
            "for example nvidia.com/gpu"
        ],
    ),
    "characters that nobody sees": (
        {
            "model": {"revision": "ma\u200bin"},
            "dataset": {"path": "/data/\u202etxt.exe", "textField": "te\u00adxt"},
            "pod": {"env": [{"name": "A", "value": "two\nlines \u200b"}, {"name": "B", "value": "a\0b"}]},
        },
        [
            "spec.model.revision: character 3 is the invisible U+200B; remove it",
            "spec.dataset.path: character 7 is the invisible U+202E; remove it",
            "spec.dataset.textField: character 3 is the invisible U+00AD; remove it",
            "spec.pod.env[1].value: character 2 is the invisible U+0000; remove it",
        ],
    ),
    "no queue for Kueue": (
        {"scheduling": {"gang": "kueue"}},
        ["spec.scheduling.queue: is needed with gang: kueue; name a LocalQueue of the job's namespace"],
    ),
    "no queue for KAI": (
        {"scheduling": {"gang": "kai"}},
        ["spec.scheduling.queue: is needed with gang: kai; name a Queue"],
    ),
    "a queue for nobody": (
        {"scheduling": {"queue": "q"}},
        ["spec.scheduling.queue: gang: none knows no queues; remove it, or set gang: kueue, volcano, kai"],
    ),
    "a queue for a scheduler without": (
        {"scheduling": {"gang": "kubernetes", "queue": "q"}},
        ["spec.scheduling.queue: gang: kubernetes knows no queues; remove it, or set gang: kueue, volcano, kai"],
    ),
    "a queue that is no label": (
        {"scheduling": {"gang": "kueue", "queue": "q" * 64}},
        ["spec.scheduling.queue: 64 characters; it becomes a label of the pods, so use at most 63"],
    ),
    "a place that is no label": (
        {"scheduling": {"topologyKey": "the rack"}},
        [
            "spec.scheduling.topologyKey: 'the rack' is no label of a node; write for example "
            "topology.kubernetes.io/zone"
        ],
    ),
    "a chat in chunks": (
        {"dataset": {"messagesField": "m", "longDocuments": "chunk"}},
        [
            "spec.dataset.longDocuments: a chat cannot be cut into chunks, its answers need their questions; "
            "use truncate"
        ],
    ),
    "adapters": (
        {"training": {"lora": {"rank": 4, "targetModules": ["q_proj"]}}},
        [
            "spec.training.lora: this is not supported yet; remove it (torchtitan's LoRA rewrites its own linear "
            "layers' configs, and models of transformers have none)"
        ],
    ),
    "an optimizer of torchtitan's own models": (
        {"optimizer": {"name": "DistMuon"}},
        [
            "spec.optimizer.name: DistMuon is not supported yet; use AdamW (torchtitan's DistMuon wants a layout for "
            "each matrix by name, which its own models alone have)"
        ],
    ),
    "checkpoints meanwhile": (
        {"checkpoint": {"asyncMode": "async_with_pinned_mem"}},
        [
            "spec.checkpoint.asyncMode: async_with_pinned_mem is not supported yet; use async (pinned copies need a "
            "GPU, and room in /dev/shm that is not reckoned with)"
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_mistake(job_dict, case):
    changes, said = MISTAKES[case]
    assert _said(job_dict(**changes)) == said


def test_a_full_job_is_admitted(job_dict):
    job = job_dict(
        name="a" * JOB_NAME_LIMIT,
        model={"revision": "v1", "initialize": "random", "overrides": {"num_hidden_layers": 2, "rope_theta": 1e4}},
        dataset={"path": None, "name": "allenai/c4", "config": "en", "split": "train[:1%]", "textField": "text"},
        mesh={"nodes": 2, "gpusPerNode": 8, "tp": 2, "dpReplicate": 2},
        pod={
            "env": [
                {"name": "NCCL_DEBUG", "value": ""},
                {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf"}}},
            ],
            "labels": {"team": "nlp", "example.com/cost-center": "A_1"},
            "nodeSelector": {"pool": ""},
            "annotations": {"k8s.v1.cni.cncf.io/networks": "[{}]"},
            "tolerations": [
                {"operator": "Exists"},
                {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5},
            ],
            "resources": {"limits": {"rdma/hca": 1, "memory": "64Gi"}},
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": None}},
        },
    )
    assert _said(job) == []


NAMES = {
    "a": True,
    "a-1": True,
    "1a": False,
    "a.b": False,
    "Demo": False,
    "a_b": False,
    "a-": False,
    "": False,
    "é": False,
    "a\n": False,
    "a" * 50: True,
    "a" * 51: False,
}


@pytest.mark.parametrize("name", NAMES)
def test_job_name(job_dict, name):
    wrong = [line for line in _said(job_dict(name=name)) if line.startswith("metadata.name: ")]
    assert (not wrong) == NAMES[name]


def test_pods_of_the_longest_job_name_have_host_names():
    assert len(naming.pod_name("a" * JOB_NAME_LIMIT, 999_999, 99_999, 100_000)) <= 63


def test_a_namespace_is_checked_too(job_dict):
    job = job_dict()
    job["metadata"]["namespace"] = "Team A"
    assert _said(job) == ["metadata.namespace: 'Team A' is no namespace; use lower-case letters, digits and '-'"]


def test_visible_text_of_any_language_is_fine(job_dict):
    job = job_dict(
        model={"revision": "größe-中文-نیم\u200cفاصله"},
        dataset={"path": "/daten/שלום/👩\u200d🔬 text", "textField": "テキスト"},
        pod={"annotations": {"note": "two\n\tlines"}},
    )
    assert _said(job) == []


TERM = {"matchExpressions": [{"key": "a", "operator": "In", "values": ["v" * 63] * 64}] * 4}
TOO_MUCH = {
    "affinity": (
        {"pod": {"affinity": {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [TERM]}}}}},
        "spec.pod.affinity: 17445 bytes are too many; use at most 16384",
    ),
    "overrides": (
        {"model": {"overrides": {str(i): "x" * 4096 for i in range(5)}}},
        "spec.model.overrides: 20525 bytes are too many; use at most 16384",
    ),
    "variables": (
        {"pod": {"env": [{"name": f"A{i}", "value": "x" * 32_768} for i in range(9)]}},
        "spec.pod.env: 294930 bytes are too many; use at most 262144, and a ConfigMap for what is larger",
    ),
}


@pytest.mark.parametrize("case", TOO_MUCH)
def test_what_every_pod_carries_has_a_size(job_dict, case):
    changes, said = TOO_MUCH[case]
    assert _said(job_dict(**changes)) == [said]


def test_models_of_later_versions(job_dict):
    said = "models of text and more are not supported yet; use the text-only checkpoint of the family"
    config = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}
    assert _said(job_dict(), config) == [f"spec.model.name: HuggingFaceTB/SmolLM2-135M: {said}"]
