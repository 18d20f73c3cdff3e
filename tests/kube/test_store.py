"""Versions only go up, and what is gone stays gone, in whatever order the cluster tells it."""

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
def told():
    return []


@pytest.fixture
def store(told):
    def project(obj):
        return Thing((obj["metadata"]["ns"], obj["metadata"]["job"]), obj["text"])

    return Store(project, lambda record: told.append(record.text))


def texts(store, key=("ns", "j")):
    return sorted(record.text for record in store.group(key))


def test_newer_versions_replace_older_ones_and_not_the_other_way(store, told):
    store.put(thing("u", 5, "old"))
    store.put(thing("u", 9, "new"))
    store.put(thing("u", 7, "between"))
    store.put(thing("u", 9, "twice"))
    assert texts(store) == ["new"]
    assert told == ["old", "new"]


def test_versions_are_numbers_not_text(store):
    store.put(thing("u", 9, "old"))
    store.put(thing("u", 10, "new"))
    assert texts(store) == ["new"]


def test_a_change_that_means_nothing_wakes_nobody(store, told):
    store.put(thing("u", 5))
    store.put(thing("u", 6))
    assert told == ["a"]
    assert store.version("u") == 6


def test_what_was_deleted_does_not_come_back_with_a_late_answer(store, told):
    store.put(thing("u", 5))
    store.remove(thing("u", 6))
    store.put(thing("u", 5))
    assert texts(store) == []
    assert told == ["a", "a"]


def test_a_deletion_of_something_never_seen_is_remembered(store):
    store.remove(thing("u", 6))
    store.put(thing("u", 5))
    assert texts(store) == []


def test_a_list_drops_what_it_does_not_hold(store):
    for uid in "abc":
        store.put(thing(uid, 5, uid))
    store.keep({"a"}, 10, None)
    assert texts(store) == ["a"]


def test_a_list_does_not_drop_what_is_newer_than_it(store):
    store.put(thing("made-meanwhile", 11))
    store.keep(set(), 10, None)
    assert texts(store) == ["a"]


def test_a_list_of_one_namespace_says_nothing_about_another(store):
    store.put(thing("u", 5, namespace="other"))
    store.keep(set(), 10, "ns")
    assert texts(store, ("other", "j")) == ["a"]
    store.keep(set(), 10, "other")
    assert texts(store, ("other", "j")) == []


def test_groups_without_records_are_forgotten(store):
    store.put(thing("u", 5))
    assert store.job_keys() == [("ns", "j")]
    store.forget("u")
    assert store.job_keys() == []
    assert len(store) == 0


def test_the_memory_of_deletions_is_bounded(store, monkeypatch):
    monkeypatch.setattr("hftitan_operator.kube.store.REMEMBERED_DELETIONS", 2)
    for uid in "abc":
        store.forget(uid)
    store.put(thing("a", 1))
    store.put(thing("c", 1))
    assert len(store) == 1


# --- what becomes a record ------------------------------------------------------------------------------------


def test_pods_and_objects_that_are_not_ours_are_passed_over():
    bare = {"metadata": {"name": "x", "namespace": "ns", "uid": "u"}}
    assert pod_record(bare) is None
    assert object_record(bare) is None
    labelled = {"metadata": {**bare["metadata"], "labels": {"hftitan.io/job": "x"}}}
    assert pod_record(labelled) is None, "our label on a pod of somebody else"


def test_two_jobs_of_one_name_are_two_records():
    def job(uid):
        metadata = {"name": "x", "namespace": "ns", "uid": uid, "resourceVersion": "1"}
        return {"apiVersion": "hftitan.io/v1alpha1", "kind": "HFTitanJob", "metadata": metadata, "spec": {}}

    jobs = Store(job_record, lambda record: None)
    jobs.put(job("old"))
    jobs.put(job("new"))
    assert len(jobs.group(("ns", "x"))) == 2
