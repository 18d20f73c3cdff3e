"""The golden manifests: whole objects that a person reviewed. `python tests/core/core_golden.py` regenerates them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parent))
from core_builders import job

from hftitan_api.mesh import plan
from hftitan_api.models import HFTitanJob
from hftitan_operator.core.rendering.render import render

FOLDER = Path(__file__).parent / "golden"


def one_cpu_node() -> HFTitanJob:
    return job(
        nodes=1,
        name="tiny",
        model={"name": "HuggingFaceTB/SmolLM2-135M-Instruct"},
        checkpoint={"volume": None, "interval": 50},
    )


def hsdp_on_gpus() -> HFTitanJob:
    """Return a job with 2 nodes x 8 GPUs, HSDP with TP, and every field of spec.pod."""
    return job(
        nodes=2,
        name="llama",
        model={"name": "meta-llama/Llama-3.1-8B", "revision": "main"},
        mesh={"gpusPerNode": 8, "device": "gpu", "dpReplicate": 2, "dpShard": 2, "tp": 4},
        training={"seqLen": 4096},
        checkpoint={"volume": "checkpoints", "folder": "llama/first"},
        scheduling={"priorityClass": "training"},
        monitoring={"port": 9500},
        pod={
            "image": "registry.example.com/trainer:1",
            "imagePullPolicy": "Always",
            "imagePullSecrets": ["registry"],
            "hfTokenSecret": {"name": "hf", "key": "token"},
            "resources": {"requests": {"cpu": "32"}, "limits": {"memory": "512Gi", "rdma/ib": "8"}},
            "shmSize": "16Gi",
            "nodeSelector": {"gpu": "h100"},
            "tolerations": [{"key": "team", "operator": "Equal", "value": "research", "effect": "NoSchedule"}],
            "affinity": {
                "podAntiAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": [
                        {
                            "topologyKey": "kubernetes.io/hostname",
                            "labelSelector": {"matchLabels": {"hftitan.io/job": "llama"}},
                        }
                    ]
                }
            },
            "env": [
                {"name": "HF_HOME", "value": "/models/cache"},
                {"name": "NCCL_DEBUG", "value": "WARN"},
                {"name": "PROXY", "valueFrom": {"configMapKeyRef": {"name": "site", "key": "proxy"}}},
            ],
            "volumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "models", "readOnly": True}}],
            "volumeMounts": [{"name": "models", "mountPath": "/models", "readOnly": True}],
            "runtimeClassName": "nvidia",
            "labels": {"team": "research"},
            "annotations": {"example.com/cost-centre": "42"},
        },
    )


CASES = {"one-cpu-node": (one_cpu_node, 1), "hsdp-on-gpus": (hsdp_on_gpus, 3)}


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def rendered(case: str) -> str:
    build, attempt = CASES[case]
    of = build()
    objects = render(of, plan(of.spec), attempt).objects
    return yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, width=120)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in CASES:
        (FOLDER / f"{name}.yaml").write_text(rendered(name))
