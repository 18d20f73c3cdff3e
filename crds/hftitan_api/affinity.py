"""Kubernetes' pod affinity as a schema.

The schema is complete, so that the API server rejects invalid affinities. Free-form JSON could also be nested too deep
for a recursive reader.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hftitan_api.base import ApiModel, LabelKey, Name

LabelValue = Annotated[str, Field(max_length=63)]
Weight = Annotated[int, Field(ge=1, le=100)]
_Values = Annotated[list[LabelValue], Field(max_length=64)]


class LabelExpression(ApiModel):
    """A condition on one label."""

    key: LabelKey
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: _Values | None = None


class NodeExpression(ApiModel):
    """A condition on one label or field of a node."""

    key: LabelKey
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    values: _Values | None = None


class LabelSelector(ApiModel):
    """All conditions must hold. An empty selector selects everything."""

    match_labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=16)] | None = None
    match_expressions: Annotated[list[LabelExpression], Field(max_length=16)] | None = None


class NodeTerm(ApiModel):
    """All conditions must hold."""

    match_expressions: Annotated[list[NodeExpression], Field(max_length=16)] | None = None
    match_fields: Annotated[list[NodeExpression], Field(max_length=16)] | None = None


class NodeTerms(ApiModel):
    """At least one of the terms must hold."""

    node_selector_terms: Annotated[list[NodeTerm], Field(min_length=1, max_length=16)]


class PreferredNodes(ApiModel):
    weight: Weight
    preference: NodeTerm


class NodeAffinity(ApiModel):
    """Selects nodes by their labels."""

    required_during_scheduling_ignored_during_execution: NodeTerms | None = None
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[list[PreferredNodes], Field(max_length=16)] | None
    ) = None


class PodTerm(ApiModel):
    """Selects pods to run near to (or away from), and the topology that defines near."""

    topology_key: LabelKey
    label_selector: LabelSelector | None = None
    namespaces: Annotated[list[Name], Field(max_length=16)] | None = None
    namespace_selector: LabelSelector | None = None
    match_label_keys: Annotated[list[LabelKey], Field(max_length=16)] | None = None
    mismatch_label_keys: Annotated[list[LabelKey], Field(max_length=16)] | None = None


class PreferredPods(ApiModel):
    weight: Weight
    pod_affinity_term: PodTerm


class PodAffinity(ApiModel):
    """Selects nodes by the pods that run there."""

    required_during_scheduling_ignored_during_execution: Annotated[list[PodTerm], Field(max_length=16)] | None = None
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[list[PreferredPods], Field(max_length=16)] | None
    ) = None


class Affinity(ApiModel):
    """Node and pod affinity, as in a Kubernetes pod."""

    node_affinity: NodeAffinity | None = None
    pod_affinity: PodAffinity | None = None
    pod_anti_affinity: PodAffinity | None = None
