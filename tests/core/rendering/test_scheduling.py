"""Objects, labels and annotations for each gang scheduler, validated against its published CRDs and constants."""

from __future__ import annotations

import json
import re

import gang_schemas
import jsonschema
import kubernetes_validate
import pytest
from core_builders import job

from hftitan_api.mesh import plan
from hftitan_operator.core import naming
from hftitan_operator.core.rendering import access, admission, scheduling
from hftitan_operator.core.rendering.render import render

UID = "0123abcd-4567-89ab-cdef-0123456789ab"
GROUP = "x-0123abcd-1"
QUEUES = {"kueue": "team-queue", "volcano": "research", "kai": "research"}
GANGS = [*scheduling.SCHEDULERS]


def gang_job(gang, **scheduling_spec):
    queue = {"queue": QUEUES[gang]} if gang in QUEUES else {}
    return job(nodes=3, meta={"uid": UID}, scheduling={"gang": gang, **queue, **scheduling_spec})


def rendered(of, attempt=1):
    return render(of, plan(of.spec), attempt)


def affinity(pod, attempt=1):
    labels = {"hftitan.io/job": "x", "hftitan.io/attempt": str(attempt)}
    term = {"topologyKey": "rack", "labelSelector": {"matchLabels": labels}}
    return term in pod["spec"].get("affinity", {}).get("podAffinity", {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution", []
    )


@pytest.mark.parametrize("gang", GANGS)
@pytest.mark.parametrize("more", [{}, {"priorityClass": "training", "topologyKey": "example.com/rack"}])
def test_a_job_of_each_gang_is_valid_and_its_objects_fit_the_published_schemas(gang, more):
    of = gang_job(gang, **more)
    assert admission.problems(of) == []
    objects = rendered(of)
    for manifest in objects.objects:
        gang_schemas.validate(manifest)
    assert (objects.pod_group is None) == (gang == "kueue")
    if objects.pod_group is not None:
        assert objects.objects[0] == objects.pod_group, "the group comes before its pods"
        assert objects.pod_group["metadata"]["ownerReferences"] == objects.service["metadata"]["ownerReferences"]


def test_the_schemas_reject_unknown_fields_and_wrong_types():
    group = rendered(gang_job("volcano")).pod_group
    with pytest.raises(jsonschema.ValidationError, match="minMembers"):
        gang_schemas.validate({**group, "spec": {"minMembers": 3}})
    with pytest.raises(jsonschema.ValidationError, match="is not of type 'integer'"):
        gang_schemas.validate({**group, "spec": {"minMember": "3"}})
    group = rendered(gang_job("kubernetes")).pod_group
    with pytest.raises(kubernetes_validate.ValidationError, match="minMember"):
        gang_schemas.validate({**group, "spec": {**group["spec"], "minMember": 3}})


# gang: (spec of the PodGroup with every field set, (labels, annotations, spec fields of the pods)).
EXPECTED = {
    "volcano": (
        {"minMember": 3, "queue": "research", "priorityClassName": "training"},
        # apis v1.15.0 pkg/apis/scheduling/v1beta1/labels.go KubeGroupNameAnnotationKey; volcano v1.15.1
        # pkg/scheduler/api/job_info.go getJobID, cmd/scheduler/app/options/options.go defaultSchedulerName
        ({}, {"scheduling.k8s.io/group-name": GROUP}, {"schedulerName": "volcano"}),
    ),
    "coscheduling": (
        {"minMember": 3},
        # scheduler-plugins v0.34.7 apis/scheduling/v1alpha1/types.go PodGroupLabel; its chart's scheduler.name
        ({"scheduling.x-k8s.io/pod-group": GROUP}, {}, {"schedulerName": "scheduler-plugins-scheduler"}),
    ),
    "kai": (
        {"minMember": 3, "queue": "research", "priorityClassName": "training"},
        # KAI v0.17.0 pkg/common/constants/constants.go PodGroupAnnotationForPod, SkipPodGrouperAnnotation,
        # DefaultQueueLabel, DefaultSchedulerName; docs/developer/designs/external-podgroups
        (
            {"kai.scheduler/queue": "research"},
            {"pod-group-name": GROUP, "kai.scheduler/skip-podgrouper": "true"},
            {"schedulerName": "kai-scheduler"},
        ),
    ),
    "kubernetes": (
        {
            "schedulingPolicy": {"gang": {"minCount": 3}},
            "disruptionMode": {"all": {}},
            "priorityClassName": "training",
            "schedulingConstraints": {"topology": [{"key": "rack"}]},
        },
        # k8s.io/api v0.37.0-beta.0 core/v1/types.go PodSchedulingGroup
        ({}, {}, {"schedulingGroup": {"podGroupName": GROUP}}),
    ),
    "kueue": (
        None,
        # Kueue v0.19.2 pkg/controller/constants/constants.go QueueLabel; pkg/controller/jobs/pod/constants/constants.go
        # GroupNameLabel, GroupNameAnnotation, GroupTotalCountAnnotation, RetriableInGroupAnnotationKey and -Value;
        # apis/kueue/v1beta2/topology_types.go PodGroupPodIndexLabelAnnotation, PodSetRequiredTopologyAnnotation
        (
            {"kueue.x-k8s.io/queue-name": "team-queue", "kueue.x-k8s.io/pod-group-name": GROUP},
            {
                "kueue.x-k8s.io/pod-group-name": GROUP,
                "kueue.x-k8s.io/pod-group-total-count": "3",
                "kueue.x-k8s.io/retriable-in-group": "false",
                "kueue.x-k8s.io/pod-group-pod-index-label": "hftitan.io/node-index",
                "kueue.x-k8s.io/podset-required-topology": "rack",
            },
            {},
        ),
    ),
}


def test_every_gang_has_a_row():
    assert set(EXPECTED) == set(GANGS)


@pytest.mark.parametrize("gang", EXPECTED)
def test_pod_group_and_pods_for_each_gang(gang):
    spec, (labels, annotations, fields) = EXPECTED[gang]
    of = gang_job(gang, priorityClass="training", topologyKey="rack")
    gang_objects, plain = rendered(of), rendered(job(nodes=3, meta={"uid": UID}))
    assert (gang_objects.pod_group and gang_objects.pod_group["spec"]) == spec
    if spec is not None:
        assert gang_objects.pod_group["metadata"]["name"] == GROUP
        assert gang_objects.pod_group["apiVersion"] == scheduling.SCHEDULERS[gang].api_version
    for pod, without in zip(gang_objects.pods, plain.pods, strict=True):
        assert pod["metadata"]["labels"] == without["metadata"]["labels"] | labels
        assert pod["metadata"].get("annotations", {}) == annotations
        expected = {**without["spec"], **fields, "priorityClassName": "training"}
        assert {key: value for key, value in pod["spec"].items() if key != "affinity"} == expected
        assert affinity(pod) == (gang not in ("kueue", "kubernetes")), "these two schedulers handle the key themselves"


@pytest.mark.parametrize("gang", ["none", *GANGS])
def test_scheduler_name_overrides_the_default_of_the_gang(gang):
    of = gang_job(gang, schedulerName="default-scheduler")
    assert {pod["spec"]["schedulerName"] for pod in rendered(of).pods} == {"default-scheduler"}


def test_the_topology_key_also_works_without_a_gang():
    other = {"topologyKey": "zone", "labelSelector": {"matchLabels": {"a": "b"}}}
    theirs = {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [other]}, "nodeAffinity": {}}
    of = job(scheduling={"topologyKey": "rack"}, pod={"affinity": theirs})
    before = of.model_dump_json()
    objects = rendered(of, 2)
    assert objects.pod_group is None
    for pod in objects.pods:
        assert affinity(pod, 2)
        assert pod["spec"]["affinity"]["nodeAffinity"] == {}
        assert other in pod["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        gang_schemas.validate(pod)
    assert of.model_dump_json() == before


@pytest.mark.parametrize("gang", GANGS)
def test_each_attempt_has_its_own_group(gang):
    of = gang_job(gang)
    first, second = json.dumps(rendered(of, 1).objects), json.dumps(rendered(of, 2).objects)
    assert "x-0123abcd-1" in first
    assert "x-0123abcd-2" in second
    assert "x-0123abcd-1" not in second


def test_a_group_name_fits_a_label_and_belongs_to_one_job():
    longest = job(name="a" * 50, meta={"uid": UID})
    name = scheduling.group_name(longest, 999_999)
    assert len(name) <= naming.LABEL_LIMIT
    assert name.endswith("-0123abcd-999999")
    cut = job(name=f"{'a' * 46}-{'b' * 3}", meta={"uid": UID})
    for of in (longest, cut, job(name="x-1", meta={"uid": UID})):
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", scheduling.group_name(of, 1))
    assert "--" not in scheduling.group_name(cut, 1)
    again = job(meta={"uid": "f" + UID[1:]})
    assert scheduling.group_name(again, 1) != scheduling.group_name(job(meta={"uid": UID}), 1), (
        "a job that was deleted and created again"
    )


def test_the_operator_has_the_permissions_that_each_gang_needs():
    granted = {(a.group, a.resource): set(a.verbs) for a in access.TABLE}
    for gang, scheduler in scheduling.SCHEDULERS.items():
        needed = {"get"} if gang == "kueue" else {"create", "delete"}
        assert granted[scheduler.group, scheduler.resource] == needed
    assert granted["kueue.x-k8s.io", "workloads"] == {"get", "delete"}


def test_kubernetes_pod_group_in_each_version_of_its_api():
    group = rendered(gang_job("kubernetes", topologyKey="rack")).pod_group
    made = [scheduling.in_version(group, version) for version in scheduling.versions(group["apiVersion"])]
    assert [g["apiVersion"].partition("/")[2] for g in made] == ["v1beta1", "v1alpha3", "v1alpha2"]
    # k8s.io/api v0.37.2 and v0.36.6 scheduling/*/types.go PodGroupSpec
    modes = [{"all": {}}, {"all": {}}, "PodGroup"]
    assert [g["spec"] for g in made] == [{**group["spec"], "disruptionMode": mode} for mode in modes]
    volcano = rendered(gang_job("volcano")).pod_group
    assert scheduling.versions(volcano["apiVersion"]) == [volcano["apiVersion"]]


def test_the_api_version_of_each_scheduler_is_served_by_its_crd():
    served = {
        f"{crd['spec']['group']}/{version['name']}": crd["spec"]["names"]["plural"]
        for crd in gang_schemas.CRDS.values()
        for version in crd["spec"]["versions"]
    }
    for gang, scheduler in scheduling.SCHEDULERS.items():
        if gang != "kubernetes":
            assert served[scheduler.api_version] == scheduler.resource
