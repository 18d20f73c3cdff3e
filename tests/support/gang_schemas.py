"""Validates objects of gang schedulers against the CRDs of their projects. Unknown fields are errors.

gang_crds/ has excerpts of the CRDs, each with its project, version and licence. Kubernetes' own kinds are validated by
kubernetes-validate.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from api_server import draft4

FOLDER = Path(__file__).parent / "gang_crds"
CRDS: dict[str, dict[str, Any]] = {path.stem: yaml.safe_load(path.read_text()) for path in FOLDER.glob("*.yaml")}
NEWEST = "1.37"
"""Version of the Kubernetes schemas: the first with PodGroup in scheduling.k8s.io/v1beta1."""


def validate(manifest: dict[str, Any]) -> None:
    """Raises ValidationError of jsonschema or kubernetes_validate for an invalid object."""
    api_version, kind = manifest["apiVersion"], manifest["kind"]
    for crd in CRDS.values():
        spec = crd["spec"]
        version = next((v for v in spec["versions"] if f"{spec['group']}/{v['name']}" == api_version), None)
        if version is not None and spec["names"]["kind"] == kind:
            jsonschema.Draft4Validator(draft4(version["schema"]["openAPIV3Schema"])).validate(manifest)
            return
    kubernetes_validate.validate(manifest, NEWEST, strict=True)
