"""Tables of specs that the CRD and the models must both accept or both reject.

Each entry has the changes to the smallest spec (job_documents.SMALLEST).
"""

# ruff: noqa: E501

from __future__ import annotations

from typing import Any

Changes = dict[str, Any]

REQUIRED, PREFERRED = (f"{kind}DuringSchedulingIgnoredDuringExecution" for kind in ("required", "preferred"))
NODES = {"matchExpressions": [{"key": "gpu", "operator": "In", "values": ["h100"]}, {"key": "x", "operator": "Exists"}]}
PODS = {"topologyKey": "rack", "labelSelector": {"matchLabels": {"a": "b"}}, "namespaceSelector": {}}
AFFINITY = {
    "nodeAffinity": {
        REQUIRED: {
            "nodeSelectorTerms": [NODES, {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]}]
        },
        PREFERRED: [{"weight": 1, "preference": NODES}],
    },
    "podAffinity": {REQUIRED: [PODS]},
    "podAntiAffinity": {PREFERRED: [{"weight": 100, "podAffinityTerm": PODS}]},
}
SCHEMAS: dict[str, tuple[Changes, bool]] = {
    "smallest": ({}, True),
    "everything": (
        {
            "model": {"revision": "main", "initialize": "random", "overrides": {"a": 1, "b": "x", "c": True, "d": 0.5}},
            "mesh": {"nodes": 2, "gpusPerNode": 8, "tp": 2, "dpShard": 8, "device": "cpu"},
            "optimizer": {"lr": 1, "betas": [0, 0.5]},
            "pod": {
                "env": [{"name": "A", "value": ""}, {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s"}}}],
                "resources": {"limits": {"cpu": 4, "memory": "1.5Gi"}},
                "volumes": [{"name": "v", "emptyDir": {"medium": ""}}],
                "volumeMounts": [{"name": "v", "mountPath": "/v", "subPath": "a/b"}],
                "affinity": AFFINITY,
                "labels": {"a/b": "c"},
            },
        },
        True,
    ),
    "unknown field": ({"mesh": {"tpp": 1}}, False),
    "snake case": ({"mesh": {"gpus_per_node": 1}}, False),
    "text for a number": ({"mesh": {"tp": "1"}}, False),
    "fraction": ({"mesh": {"tp": 1.5}}, False),
    "boolean for a number": ({"mesh": {"tp": True}}, False),
    "number for text": ({"model": {"revision": 1}}, False),
    "choice": ({"mesh": {"device": "tpu"}}, False),
    "below": ({"mesh": {"tp": 0}}, False),
    "above": ({"mesh": {"gpusPerNode": 65}}, False),
    "lr zero": ({"optimizer": {"lr": 0}}, False),
    "lr just above": ({"optimizer": {"lr": 1e-12}}, True),
    "beta one": ({"optimizer": {"betas": [0.9, 1]}}, False),
    "beta zero": ({"optimizer": {"betas": [0, 0]}}, True),
    "three betas": ({"optimizer": {"betas": [0.9, 0.9, 0.9]}}, False),
    "relative path": ({"dataset": {"path": "x"}}, False),
    "control character": ({"dataset": {"path": "/x\n"}}, False),
    "name with newline": ({"model": {"name": "a/b\n"}}, False),
    "three parts": ({"model": {"name": "a/b/c"}}, False),
    "dots": ({"model": {"name": "../b"}}, False),
    "Unicode letter": ({"model": {"name": "é/b"}}, False),
    "quantity": ({"pod": {"shmSize": "1X"}}, False),
    "quantity number": ({"pod": {"shmSize": 1}}, True),
    "quantity fraction": ({"pod": {"shmSize": 0.5}}, False),
    "quantity negative": ({"pod": {"shmSize": "-1"}}, False),
    "folder out": ({"checkpoint": {"folder": "../x"}}, False),
    "volume name": ({"pod": {"volumes": [{"name": "A_b"}]}}, False),
    "host network": ({"pod": {"hostNetwork": True}}, False),
    "host network in the affinity": ({"pod": {"affinity": {"hostNetwork": True}}}, False),
    "affinity with a list": ({"pod": {"affinity": {"nodeAffinity": []}}}, False),
    "affinity without terms": ({"pod": {"affinity": {"nodeAffinity": {REQUIRED: {}}}}}, False),
    "affinity nested in itself": (
        {"pod": {"affinity": {"nodeAffinity": {"nodeAffinity": {"nodeAffinity": {}}}}}},
        False,
    ),
    "override of a mapping": ({"model": {"overrides": {"rope_scaling": {"factor": 2}}}}, False),
    "override of a list": ({"model": {"overrides": {"layer_types": ["a"]}}}, False),
    "override of a long text": ({"model": {"overrides": {"a": "x" * 4097}}}, False),
    "nodes": ({"mesh": {"nodes": 5000}}, True),
    "more nodes than a cluster has": ({"mesh": {"nodes": 5001}}, False),
    "space in the image": ({"pod": {"image": "a b"}}, False),
    "Unicode in the image": ({"pod": {"image": "a\u200bb"}}, False),
    "name with an empty part": ({"checkpoint": {"volume": "a..b"}}, False),
    "name with a part that ends with a dash": ({"checkpoint": {"volume": "a-.b"}}, False),
    "name of several parts": ({"checkpoint": {"volume": "a.b-c.0"}}, True),
    "too many": ({"pod": {"imagePullSecrets": ["s"] * 17}}, False),
    "too many labels": ({"pod": {"labels": {f"k{i}": "" for i in range(65)}}}, False),
    "long text": ({"model": {"revision": "x" * 256}}, False),
    "empty text": ({"model": {"revision": ""}}, False),
    "spaces in an image": ({"pod": {"image": "a b"}}, False),
    "list for mapping": ({"mesh": []}, False),
    "mapping for list": ({"pod": {"env": {}}}, False),
    "no steps": ({"training": {"steps": -1}}, False),
    "huge": ({"training": {"steps": 10**30}}, False),
}
"""Name -> changes, and whether the schema accepts them."""
RULES: dict[str, tuple[Changes, str | None]] = {
    "fills up": ({"mesh": {"nodes": 2, "gpusPerNode": 8, "tp": 4}}, None),
    "explicit": ({"mesh": {"nodes": 2, "gpusPerNode": 8, "tp": 4, "dpShard": 2, "dpReplicate": 2}}, None),
    "product is not the world size": ({"mesh": {"gpusPerNode": 8, "dpShard": 4}}, "nodes x gpusPerNode must equal"),
    "not a divisor": ({"mesh": {"gpusPerNode": 8, "cp": 3}, "training": {"seqLen": 768}}, "nodes x gpusPerNode must equal"),
    "zero shards": ({"mesh": {"dpShard": 0}}, "nodes x gpusPerNode must equal"),
    "more than the world": ({"mesh": {"dpReplicate": 2}}, "nodes x gpusPerNode must equal"),
    "overflow": (
        {
            "mesh": {"nodes": 5000, "tp": 100_000, "cp": 100_000, "pp": 100_000, "dpReplicate": 100_000},
            "training": {"localBatchSize": 100_000, "seqLen": 8, "globalBatchSize": 2**31 - 1},
        },
        "nodes x gpusPerNode must equal",
    ),
    "tp across nodes": ({"mesh": {"nodes": 4, "gpusPerNode": 2, "tp": 4}}, "tp must divide gpusPerNode"),
    "ep across nodes": ({"mesh": {"nodes": 4, "gpusPerNode": 2, "ep": 4}}, "ep must divide"),
    "ep beyond a replica": ({"mesh": {"gpusPerNode": 8, "dpReplicate": 4, "ep": 4}}, "ep must divide"),
    "ep": ({"mesh": {"gpusPerNode": 8, "dpReplicate": 2, "ep": 4}}, None),
    "odd sequence": ({"training": {"seqLen": 99}}, "training.seqLen must be a multiple of tp x 2 x cp"),
    "attention blocks": ({"mesh": {"gpusPerNode": 2, "cp": 2}, "training": {"seqLen": 132}}, "training.seqLen must be a multiple of 128 x cp on GPUs if cp"),
    "no attention blocks on CPUs": ({"mesh": {"gpusPerNode": 2, "cp": 2, "device": "cpu"}, "training": {"seqLen": 132}}, None),
    "global batch not a multiple": ({"mesh": {"gpusPerNode": 4}, "training": {"globalBatchSize": 6}}, "training.globalBatchSize must be"),
    "global batch": ({"mesh": {"gpusPerNode": 4, "tp": 2}, "training": {"globalBatchSize": 6}}, None),
    "schedule without a pipeline": ({"training": {"pipelineSchedule": "1F1B"}}, "training.pipelineSchedule needs"),
    "batch smaller than the pipeline": ({"mesh": {"gpusPerNode": 2, "pp": 2}}, "training.localBatchSize must be at least"),
    "batch as large as the pipeline": ({"mesh": {"gpusPerNode": 2, "pp": 2}, "training": {"localBatchSize": 2}}, None),
    "batch smaller than the interleaved pipeline": (
        {"mesh": {"gpusPerNode": 2, "pp": 2}, "training": {"localBatchSize": 2, "pipelineSchedule": "Interleaved1F1B"}},
        "training.localBatchSize must be at least",
    ),
    "uneven rounds": (
        {"mesh": {"gpusPerNode": 2, "pp": 2}, "training": {"localBatchSize": 5, "pipelineSchedule": "Interleaved1F1B"}},
        "training.localBatchSize must be a multiple of the number of rounds",
    ),
    "even rounds": (
        {"mesh": {"gpusPerNode": 2, "pp": 2}, "training": {"localBatchSize": 6, "pipelineSchedule": "Interleaved1F1B"}},
        None,
    ),
    "float8": ({"training": {"float8": "rowwise"}}, None),
    "float8 on CPUs": (
        {"training": {"float8": "rowwise"}, "mesh": {"device": "cpu"}}, "training.float8 needs mesh.device: gpu",
    ),
    "float8 with an odd sequence": (
        {"training": {"float8": "rowwise", "seqLen": 24}}, "training.seqLen must be a multiple of 16 x cp",
    ),
    "warm-up": ({"lrSchedule": {"warmupSteps": 101}}, "lrSchedule.warmupSteps must be at most"),
    "nodes without a volume": ({"mesh": {"nodes": 2}, "checkpoint": {"volume": None}}, "checkpoint.volume is required with several nodes"),
    "nodes that save nothing": (
        {"mesh": {"nodes": 2}, "checkpoint": {"volume": None, "interval": 0, "exportHF": False}},
        None,
    ),
    "push": ({"checkpoint": {"pushToHub": {"repo": "a/b"}}, "pod": {"hfTokenSecret": {"name": "hub"}}}, None),
    "push without export": (
        {"checkpoint": {"exportHF": False, "pushToHub": {"repo": "a/b"}}, "pod": {"hfTokenSecret": {"name": "hub"}}},
        "checkpoint.pushToHub needs checkpoint.exportHF: true",
    ),
    "push without token": ({"checkpoint": {"pushToHub": {"repo": "a/b"}}}, "checkpoint.pushToHub needs pod.hfTokenSecret"),
    "queue": ({"scheduling": {"gang": "volcano", "queue": "a.b"}}, None),
    "Volcano without queue": ({"scheduling": {"gang": "volcano"}}, None),
    "Coscheduling without queue": ({"scheduling": {"gang": "coscheduling", "topologyKey": "rack"}}, None),
    "Kueue without queue": ({"scheduling": {"gang": "kueue"}}, "scheduling.queue is required with scheduling.gang kueue or kai"),
    "KAI without queue": ({"scheduling": {"gang": "kai"}}, "scheduling.queue is required with scheduling.gang kueue or kai"),
    "queue without gang scheduler": ({"scheduling": {"queue": "a"}}, "scheduling.queue is only for scheduling.gang kueue, volcano or kai"),
    "two data sources": ({"dataset": {"name": "a/b"}}, "set either name (a hub id)"),
    "no data source": ({"dataset": {"path": None}}, "set either name (a hub id)"),
    "config with path": ({"dataset": {"config": "en"}}, "config is for hub datasets"),
    "split with path": ({"dataset": {"split": "test"}}, "split is for hub datasets"),
    "default split with path": ({"dataset": {"split": "train", "streaming": False}}, None),
    "streaming with path": ({"dataset": {"streaming": True}}, "streaming is for hub datasets"),
    "split of held-out files": ({"validation": {"dataset": {"path": "/a", "split": "test"}}}, "split is for hub datasets"),
    "split of held-out hub data": ({"validation": {"dataset": {"name": "a/b", "split": "test", "streaming": True}}}, None),
    "text and chat field": ({"dataset": {"textField": "a", "messagesField": "b"}}, "set either textField"),
    "decay type without decay": ({"lrSchedule": {"decayType": "sqrt"}}, "lrSchedule.decayType and minLrFactor have no effect"),
    "factor without decay": ({"lrSchedule": {"minLrFactor": 1}}, "lrSchedule.decayType and minLrFactor have no effect"),
    "decay": ({"lrSchedule": {"decayRatio": 1, "decayType": "sqrt", "minLrFactor": 1}}, None),
    "revision": ({"model": {"revision": "refs/pr/1"}}, None),
    "revision that git does not allow": ({"model": {"revision": "a..b"}}, "model.revision must be a branch, tag or commit"),
    "variable of torchrun": ({"pod": {"env": [{"name": "A"}, {"name": "RANK", "value": "1"}]}}, "pod.env must not set"),
    "prefix of torchrun": ({"pod": {"env": [{"name": "TORCHELASTIC_A", "value": "1"}]}}, "pod.env must not set"),
    "other variable": ({"pod": {"env": [{"name": "MASTER", "value": "1"}]}}, None),
}  # fmt: skip
"""Name -> changes, and the start of the broken rule's message."""
CHANGES: dict[str, Changes] = {
    "model": {"model": {"revision": "other"}},
    "dataset": {"dataset": {"textField": "body"}},
    "mesh": {"mesh": {"gpusPerNode": 2}},
    "training": {"training": {"steps": 101}},
    "optimizer": {"optimizer": {"betas": [0.9, 0.99]}},
    "lrSchedule": {"lrSchedule": {"warmupSteps": 1}},
    "checkpoint": {"checkpoint": {"keep": 3}},
    "validation": {"validation": {"dataset": {"name": "a/b"}}},
    "scheduling": {"scheduling": {"priorityClass": "high"}},
    "monitoring": {"monitoring": {"port": 9401}},
    "pod": {"pod": {"affinity": {"nodeAffinity": {}}}},
}
"""Section of the spec -> changes, which are rejected while the job exists."""
