"""Rules between fields, and unsupported fields: the exact message of each error."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest
from api_server import spec_errors

from hftitan_api.admit import JOB_NAME_LIMIT, TORCHRUN_ENV, TORCHRUN_ENV_PREFIX, admit
from hftitan_api.load import review
from hftitan_operator.core import naming


def _messages(job, config=None):
    loaded = review(job, config)
    assert loaded.job is not None, loaded.problems
    assert [str(problem) for problem in loaded.problems] == [str(error) for error in admit(loaded.job, config)]
    return [str(problem) for problem in loaded.problems]


FOLDER = "/models/llama"
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
INVALID = {
    "no data source": (
        {"dataset": {"path": None}},
        ["spec.dataset: has neither name nor path; set name (a hub id) or path (a file or folder)"],
    ),
    "two data sources": ({"dataset": {"name": "a/b"}}, ["spec.dataset: has both name and path; keep one of them"]),
    "config with path": (
        {"dataset": {"config": "en"}},
        ["spec.dataset.config: is for hub datasets; remove it, or set name instead of path"],
    ),
    "split and streaming with path": (
        {"dataset": {"split": "test", "streaming": True}},
        [
            "spec.dataset.split: is for hub datasets; remove it, or set name instead of path",
            "spec.dataset.streaming: is for hub datasets; remove it, or set name instead of path",
        ],
    ),
    "the default split with path": ({"dataset": {"split": "train", "streaming": False}}, []),
    "split of held-out files": (
        {"validation": {"dataset": {"path": "/held-out", "split": "test"}}},
        ["spec.validation.dataset.split: is for hub datasets; remove it, or set name instead of path"],
    ),
    "decay without decayRatio": (
        {"lrSchedule": {"decayType": "cosine", "minLrFactor": 0.1}},
        [
            "spec.lrSchedule.decayType: cosine has no effect, because decayRatio is 0 and the learning rate never "
            "decays; set decayRatio (1 decays over all steps), or remove decayType",
            "spec.lrSchedule.minLrFactor: 0.1 has no effect, because decayRatio is 0 and the learning rate never "
            "decays; set decayRatio (1 decays over all steps), or remove minLrFactor",
        ],
    ),
    "decay": ({"lrSchedule": {"decayType": "cosine", "decayRatio": 0.5, "minLrFactor": 0.1}}, []),
    "revision that git does not allow": (
        {"model": {"revision": "v1..2"}},
        [
            "spec.model.revision: 'v1..2' is not a branch, tag or commit, because git does not allow '..' at character "
            "3; use a revision of the hub repository"
        ],
    ),
    "variables of torchrun": (
        {"pod": {"env": [{"name": n, "value": "1"} for n in ("RANK", "RANKS", "TORCHELASTIC_RUN_ID", "MASTER_PORT")]}},
        [
            "spec.pod.env[0].name: RANK is set by torchrun; remove it",
            "spec.pod.env[2].name: TORCHELASTIC_RUN_ID is set by torchrun; remove it",
            "spec.pod.env[3].name: MASTER_PORT is set by torchrun; remove it",
        ],
    ),
    "text and chat field": (
        {"dataset": {"textField": "text", "messagesField": "messages"}},
        [
            "spec.dataset: has both textField and messagesField; keep textField for plain text "
            "or messagesField for chats"
        ],
    ),
    "dots in the data path": (
        {"dataset": {"path": "/data/../etc"}},
        ["spec.dataset.path: /data/../etc contains '..'; use a plain absolute path"],
    ),
    "dots in the model path": (
        {"model": {"name": "/models/../x"}},
        ["spec.model.name: /models/../x contains '..'; use a plain absolute path"],
    ),
    "revision of a folder": (
        {"model": {"name": FOLDER, "revision": "main"}},
        [f"spec.model.revision: {FOLDER} is a folder and has no revisions; remove it"],
    ),
    "override of the shape of pretrained weights": (
        {"model": {"overrides": {"num_hidden_layers": 2}}},
        [
            "spec.model.overrides.num_hidden_layers: changes the shape of weights, so pretrained weights do not fit; "
            "use initialize: random"
        ],
    ),
    "override of the model type": (
        {"model": {"overrides": {"model_type": "mamba"}, "initialize": "random"}},
        ["spec.model.overrides.model_type: identifies the model and cannot be overridden; name another model instead"],
    ),
    "variable without value": (
        {"pod": {"env": [{"name": "A"}]}},
        ["spec.pod.env[0]: A has no value; set value or valueFrom"],
    ),
    "token in the job": (
        {"pod": {"env": [{"name": "HF_TOKEN", "value": "x"}]}},
        ["spec.pod.env[0].value: HF_TOKEN would be readable in the job; use spec.pod.hfTokenSecret"],
    ),
    "token under another name": (
        {"pod": {"env": [{"name": "A", "value": "x"}, {"name": "MINE", "value": "hf_" + "a1B2" * 8}]}},
        ["spec.pod.env[1].value: MINE looks like a Hugging Face token; use spec.pod.hfTokenSecret"],
    ),
    "push without export and token": (
        {"checkpoint": {"exportHF": False, "pushToHub": {"repo": "acme/x"}}},
        [
            "spec.checkpoint.pushToHub: the push to acme/x needs the export, and exportHF is false; set exportHF: true",
            "spec.pod.hfTokenSecret: is required for spec.checkpoint.pushToHub; name a Secret with a token that may "
            "write to acme/x",
        ],
    ),
    "valid push": (
        {"checkpoint": {"pushToHub": {"repo": "acme/x"}}, "pod": {"hfTokenSecret": {"name": "hub"}}},
        [],
    ),
    "label key": (
        {"pod": {"labels": {"a b": "x"}}},
        ["spec.pod.labels[\"a b\"]: 'a b' is not a Kubernetes key; use name or example.com/name"],
    ),
    "label value": (
        {"pod": {"nodeSelector": {"pool": "-x"}}},
        [
            "spec.pod.nodeSelector.pool: '-x' is not a label value; use at most 63 letters, digits, '-', '_' and '.', "
            "with a letter or digit at both ends"
        ],
    ),
    "annotation key": (
        {"pod": {"annotations": {"Example.com/x": "any text: fine"}}},
        [
            "spec.pod.annotations[\"Example.com/x\"]: 'Example.com/x' is not a Kubernetes key; "
            "use name or example.com/name"
        ],
    ),
    "toleration with Exists and a value": (
        {"pod": {"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}},
        ["spec.pod.tolerations[0].value: operator Exists takes no value; remove it, or use operator: Equal"],
    ),
    "toleration without key": (
        {"pod": {"tolerations": [{"effect": "NoSchedule"}]}},
        [
            "spec.pod.tolerations[0].key: is empty; set the key of a taint, or use operator: Exists to tolerate all "
            "taints"
        ],
    ),
    "tolerationSeconds without NoExecute": (
        {"pod": {"tolerations": [{"key": "a", "value": "b", "tolerationSeconds": 3}]}},
        [
            "spec.pod.tolerations[0].tolerationSeconds: needs effect: NoExecute; set it, or remove "
            "tolerationSeconds"
        ],
    ),
    "GPUs in resources": (
        {"pod": {"resources": {"limits": {"nvidia.com/gpu": 8}}}},
        ['spec.pod.resources.limits["nvidia.com/gpu"]: comes from spec.mesh.gpusPerNode; remove it'],
    ),
    "invalid resource name": (
        {"pod": {"resources": {"requests": {"c p u": "1"}}}},
        [
            "spec.pod.resources.requests[\"c p u\"]: 'c p u' is not a resource; "
            "use for example cpu, memory or example.com/nic"
        ],
    ),
    "misspelt resource name": (
        {"pod": {"resources": {"limits": {"memroy": "1Gi", "hugepages-2Mi": "1Gi", "batch.kubernetes.io/x": 1}}}},
        [
            "spec.pod.resources.limits.memroy: 'memroy' is not a resource; "
            "use for example cpu, memory or example.com/nic",
            "spec.pod.resources.limits[\"batch.kubernetes.io/x\"]: 'batch.kubernetes.io/x' is not a resource; "
            "use for example cpu, memory or example.com/nic",
        ],
    ),
    "invalid GPU resource": (
        {"pod": {"gpuResource": "requests.nvidia.com/gpu"}},
        [
            "spec.pod.gpuResource: 'requests.nvidia.com/gpu' is not a device; use the name from its device "
            "plugin, for example nvidia.com/gpu"
        ],
    ),
    "invisible characters": (
        {
            "model": {"revision": "ma\u200bin"},
            "dataset": {"path": "/data/\u202etxt.exe", "textField": "te\u00adxt"},
            "pod": {"env": [{"name": "A", "value": "two\nlines \u200b"}, {"name": "B", "value": "a\0b"}]},
        },
        [
            "spec.model.revision: character 3 (U+200B) is invisible; remove it",
            "spec.dataset.path: character 7 (U+202E) is invisible; remove it",
            "spec.dataset.textField: character 3 (U+00AD) is invisible; remove it",
            "spec.pod.env[1].value: character 2 (U+0000) is invisible; remove it",
        ],
    ),
    "Kueue without queue": (
        {"scheduling": {"gang": "kueue"}},
        ["spec.scheduling.queue: is required with gang: kueue; name a LocalQueue in the job's namespace"],
    ),
    "KAI without queue": (
        {"scheduling": {"gang": "kai"}},
        ["spec.scheduling.queue: is required with gang: kai; name a Queue"],
    ),
    "queue without gang scheduler": (
        {"scheduling": {"queue": "q"}},
        ["spec.scheduling.queue: gang: none has no queues; remove it, or use gang: kueue, volcano or kai"],
    ),
    "queue for a scheduler without queues": (
        {"scheduling": {"gang": "kubernetes", "queue": "q"}},
        ["spec.scheduling.queue: gang: kubernetes has no queues; remove it, or use gang: kueue, volcano or kai"],
    ),
    "queue name too long for a label": (
        {"scheduling": {"gang": "kueue", "queue": "q" * 64}},
        [
            "spec.scheduling.queue: 64 characters are too many, because the queue becomes a label of the pods; use at "
            "most 63"
        ],
    ),
    "topology key that is not a label key": (
        {"scheduling": {"topologyKey": "the rack"}},
        [
            "spec.scheduling.topologyKey: 'the rack' is not a label key; use a label of the nodes, for example "
            "topology.kubernetes.io/zone"
        ],
    ),
    "chunked chat": (
        {"dataset": {"messagesField": "m", "longDocuments": "chunk"}},
        [
            "spec.dataset.longDocuments: chunk is not supported for chats, because answers need their questions; "
            "use truncate or drop"
        ],
    ),
    "LoRA": (
        {"training": {"lora": {"rank": 4, "targetModules": ["q_proj"]}}},
        [
            "spec.training.lora: lora is not supported yet; remove it (torchtitan's LoRA needs torchtitan's linear "
            "layers, which transformers models do not have)"
        ],
    ),
    "DistMuon": (
        {"optimizer": {"name": "DistMuon"}},
        [
            "spec.optimizer.name: DistMuon is not supported yet; use AdamW (torchtitan's DistMuon needs a layout for "
            "each matrix, which only torchtitan's models define)"
        ],
    ),
    "pinned memory": (
        {"checkpoint": {"asyncMode": "async_with_pinned_mem"}},
        [
            "spec.checkpoint.asyncMode: async_with_pinned_mem is not supported yet; use async (pinned copies need a "
            "GPU, and space in /dev/shm that the operator does not request)"
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", INVALID)
def test_exact_messages(job_dict, case):
    changes, messages = INVALID[case]
    assert _messages(job_dict(**changes)) == messages


def test_valid_job_with_many_fields_has_no_problems(job_dict):
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
    assert _messages(job) == []


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
def test_job_name_rules(job_dict, name):
    wrong = [line for line in _messages(job_dict(name=name)) if line.startswith("metadata.name: ")]
    assert (not wrong) == NAMES[name]


def test_pod_name_of_the_longest_job_name_fits_a_host_name():
    assert len(naming.pod_name("a" * JOB_NAME_LIMIT, 999_999, 99_999, 100_000)) <= 63


def test_invalid_namespace_is_rejected(job_dict):
    job = job_dict()
    job["metadata"]["namespace"] = "Team A"
    assert _messages(job) == ["metadata.namespace: 'Team A' is not a namespace; use lower-case letters, digits and '-'"]


def test_visible_text_in_any_language_is_accepted(job_dict):
    job = job_dict(
        model={"revision": "größe-中文-نیم\u200cفاصله"},
        dataset={"path": "/daten/שלום/👩\u200d🔬 text", "textField": "テキスト"},
        pod={"annotations": {"note": "two\n\tlines"}},
    )
    assert _messages(job) == []


TERM = {"matchExpressions": [{"key": "a", "operator": "In", "values": ["v" * 63] * 64}] * 4}
TOO_LARGE = {
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
        "spec.pod.env: 294930 bytes are too many; use at most 262144, and a ConfigMap for larger data",
    ),
}


@pytest.mark.parametrize("case", TOO_LARGE)
def test_size_limits_of_data_in_every_pod(job_dict, case):
    changes, message = TOO_LARGE[case]
    assert _messages(job_dict(**changes)) == [message]


REFS = [
    "main", "v1.0", "refs/pr/1", "a/b", "größe-中文", "0012345", "f" * 40, "a@b", "@a", "a.lockb", "a{b}", "a]", "a-",
    "{", "@", "@{x", "a@{b", "a..b", "a.", "/a", "a/", "a//b", ".a", "a/.b", "a.lock", "a.lock/b", "a b", "a~1", "a^",
    "a:b", "a?", "a*", "a[b", "a\\b", "-a",
]  # fmt: skip


@pytest.mark.parametrize("name", REFS)
def test_revisions_follow_the_rules_of_git(job_dict, spec_dict, name):
    git = subprocess.run(["git", "check-ref-format", "--allow-onelevel", name], check=False, capture_output=True)
    assert (_messages(job_dict(model={"revision": name})) == []) == (git.returncode == 0)
    assert (spec_errors(spec_dict(model={"revision": name})) == []) == (git.returncode == 0)


def test_the_refused_variables_are_those_that_torchrun_sets_in_every_rank():
    (torch,) = importlib.util.find_spec("torch").submodule_search_locations
    source = Path(torch, "distributed/elastic/agent/server/local_elastic_agent.py").read_text()
    names = set(re.findall(r'(?:^ {16}|worker_env\[)"([A-Z_]+)"[]:]', source, re.MULTILINE))
    kept = {"TORCH_NCCL_ASYNC_ERROR_HANDLING", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"}
    assert {name for name in names - kept if not name.startswith(TORCHRUN_ENV_PREFIX)} == set(TORCHRUN_ENV)


def test_quantized_model_is_rejected(job_dict):
    message = (
        "spec.model.name: HuggingFaceTB/SmolLM2-135M is quantized; train the original, unquantized weights instead"
    )
    assert _messages(job_dict(), {"model_type": "llama", "quantization_config": {"bits": 4}}) == [message]


def test_multimodal_model_is_rejected(job_dict):
    message = "multimodal models are not supported yet; use the text-only checkpoint of the family"
    config = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}
    assert _messages(job_dict(), config) == [f"spec.model.name: HuggingFaceTB/SmolLM2-135M: {message}"]
