"""Versions only increase and deleted objects stay deleted, in any order of updates."""

from dataclasses import dataclass

import pytest

from hftitan_operator.kube.store import Store, job_record, object_record, pod_record


@dataclass(frozen=True)
class Thing:
    key: tuple[str, str]
    text: str


def thing(uid, version, text="a", job="j", namespace="ns"):
    return {"metadata": {"uid": uid, "resourceVersion": str(version), "job": job, "ns": namespace}, "text": text}


@pytest.fixture
def changed():
    return []


@pytest.fixture
def store(changed):
    def project(obj):
        return Thing((obj["metadata"]["ns"], obj["metadata"]["job"]), obj["text"])

    return Store(project, lambda record: changed.append(record.text))


def texts(store, key=("ns", "j")):
    return sorted(record.text for record in store.group(key))


def test_only_newer_versions_replace_a_record(store, changed):
    store.put(thing("u", 5, "old"))
    store.put(thing("u", 9, "new"))
    store.put(thing("u", 7, "between"))
    store.put(thing("u", 9, "twice"))
    assert texts(store) == ["new"]
    assert changed == ["old", "new"]


def test_the_whole_object_completes_the_metadata_of_a_response(store, changed):
    """The API server sets conditions when it creates a pod; the watch event with them has the same version."""
    store.put({**thing("u", 5, "response"), "kind": "PartialObjectMetadata"})
    store.put(thing("u", 4, "older"))
    store.put(thing("u", 5, "whole"))
    store.put({**thing("u", 5, "late response"), "kind": "PartialObjectMetadata"})
    store.put(thing("u", 5, "twice"))
    assert changed == ["response", "whole"]


def test_versions_are_compared_as_numbers(store):
    store.put(thing("u", 9, "old"))
    store.put(thing("u", 10, "new"))
    assert texts(store) == ["new"]


def test_an_update_without_a_relevant_change_wakes_no_job(store, changed):
    store.put(thing("u", 5))
    store.put(thing("u", 6))
    assert changed == ["a"]
    assert store.version("u") == 6


def test_the_last_state_of_a_deleted_object_is_passed_on():
    seen = []

    def project(obj):
        return Thing(("ns", "j"), obj["text"]) if obj["text"] else None

    store = Store(project, lambda record: None, seen.append)
    store.put(thing("u", 5, "running"))
    store.remove(thing("u", 8, "saved step 7"))
    store.remove(thing("other", 9, ""))  # not one of ours
    store.put(thing("v", 10, "running"))
    store.keep(set(), 11, None)  # a list lacks it: nobody knows its last state
    assert [record.text for record in seen] == ["saved step 7"]
    assert len(store) == 0


def test_a_late_response_does_not_restore_a_deleted_object(store, changed):
    store.put(thing("u", 5))
    store.remove(thing("u", 6))
    store.put(thing("u", 5))
    assert texts(store) == []
    assert changed == ["a", "a"]


def test_a_deletion_of_an_unknown_object_is_remembered(store):
    store.remove(thing("u", 6))
    store.put(thing("u", 5))
    assert texts(store) == []


def test_a_list_removes_objects_that_it_lacks(store):
    for uid in "abc":
        store.put(thing(uid, 5, uid))
    store.keep({"a"}, 10, None)
    assert texts(store) == ["a"]


def test_a_list_keeps_newer_objects(store):
    store.put(thing("made-meanwhile", 11))
    store.keep(set(), 10, None)
    assert texts(store) == ["a"]


def test_a_list_of_one_namespace_does_not_affect_another(store):
    store.put(thing("u", 5, namespace="other"))
    store.keep(set(), 10, "ns")
    assert texts(store, ("other", "j")) == ["a"]
    store.keep(set(), 10, "other")
    assert texts(store, ("other", "j")) == []


def test_empty_groups_are_removed(store):
    store.put(thing("u", 5))
    assert store.job_keys() == [("ns", "j")]
    store.forget("u")
    assert store.job_keys() == []
    assert len(store) == 0


def test_the_number_of_remembered_deletions_is_limited(store, monkeypatch):
    monkeypatch.setattr("hftitan_operator.kube.store.REMEMBERED_DELETIONS", 2)
    for uid in "abc":
        store.forget(uid)
    store.put(thing("a", 1))
    store.put(thing("c", 1))
    assert len(store) == 1


# --- records --------------------------------------------------------------------------------------------------


def test_pods_and_objects_of_others_are_ignored():
    bare = {"metadata": {"name": "x", "namespace": "ns", "uid": "u"}}
    assert pod_record(bare) is None
    assert object_record(bare) is None
    labelled = {"metadata": {**bare["metadata"], "labels": {"hftitan.io/job": "x"}}}
    assert pod_record(labelled) is None, "a foreign pod with the job label"


def test_two_jobs_with_the_same_name_are_two_records():
    def job(uid):
        metadata = {"name": "x", "namespace": "ns", "uid": uid, "resourceVersion": "1"}
        return {"apiVersion": "hftitan.io/v1alpha1", "kind": "HFTitanJob", "metadata": metadata, "spec": {}}

    jobs = Store(job_record, lambda record: None)
    jobs.put(job("old"))
    jobs.put(job("new"))
    assert len(jobs.group(("ns", "x"))) == 2
