"""Kubernetes' pod affinity as a schema.

Written out, not taken as free JSON: what the API server cannot check it cannot refuse, and free JSON may be nested
deeper than any reader of it can follow.
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
    """All conditions must hold; an empty one selects everything."""

    match_labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=16)] | None = None
    match_expressions: Annotated[list[LabelExpression], Field(max_length=16)] | None = None


class NodeTerm(ApiModel):
    """All conditions must hold."""

    match_expressions: Annotated[list[NodeExpression], Field(max_length=16)] | None = None
    match_fields: Annotated[list[NodeExpression], Field(max_length=16)] | None = None


class NodeTerms(ApiModel):
    """One of the terms must hold."""

    node_selector_terms: Annotated[list[NodeTerm], Field(min_length=1, max_length=16)]


class PreferredNodes(ApiModel):
    weight: Weight
    preference: NodeTerm


class NodeAffinity(ApiModel):
    """Which nodes."""

    required_during_scheduling_ignored_during_execution: NodeTerms | None = None
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[list[PreferredNodes], Field(max_length=16)] | None
    ) = None


class PodTerm(ApiModel):
    """Pods beside which (or far from which) to be, and what counts as beside."""

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
    """Which other pods."""

    required_during_scheduling_ignored_during_execution: Annotated[list[PodTerm], Field(max_length=16)] | None = None
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[list[PreferredPods], Field(max_length=16)] | None
    ) = None


class Affinity(ApiModel):
    """A Kubernetes affinity."""

    node_affinity: NodeAffinity | None = None
    pod_affinity: PodAffinity | None = None
    pod_anti_affinity: PodAffinity | None = None
