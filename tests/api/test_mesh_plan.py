"""The layout of ranks: coordinates, groups and nodes of a plan, and their consistency."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftitan_api.mesh import AXES, MeshPlan, SpecError, check, plan
from hftitan_api.models import JobSpec
from hftitan_api.wire import MeshDegrees

SUMMARIES = {
    "1x1": {},
    "1x8: dp8": {"gpusPerNode": 8},
    "2x8: dp4 tp4": {"nodes": 2, "gpusPerNode": 8, "tp": 4},
    "1x8: rep8": {"gpusPerNode": 8, "dpReplicate": 8},
    "2x8: rep2 shard4 tp2": {"nodes": 2, "gpusPerNode": 8, "dpReplicate": 2, "tp": 2},
    "2x8: pp2 dp2 cp2 tp2 ep4": {"nodes": 2, "gpusPerNode": 8, "pp": 2, "cp": 2, "tp": 2, "ep": 4},
}


@pytest.mark.parametrize(("summary", "mesh"), SUMMARIES.items())
def test_summary_text(spec, summary, mesh):
    assert plan(spec(mesh=mesh, training={"localBatchSize": 8})).summary == summary


def test_layout_of_two_nodes(spec):
    p = plan(
        spec(
            mesh={"nodes": 2, "gpusPerNode": 8, "pp": 2, "dpReplicate": 2, "tp": 2, "ep": 4},
            training={"localBatchSize": 4},
        )
    )
    assert p.degrees == MeshDegrees(
        nodes=2, ranks_per_node=8, dp_replicate=2, dp_shard=2, cp=1, tp=2, pp=2, ep=4, device="gpu"
    )
    assert p.coordinates(0) == {"pp": 0, "dp_replicate": 0, "dp_shard": 0, "cp": 0, "tp": 0}
    assert p.coordinates(13) == {"pp": 1, "dp_replicate": 1, "dp_shard": 0, "cp": 0, "tp": 1}
    assert p.groups("tp")[:3] == ((0, 1), (2, 3), (4, 5))
    assert p.groups("dp_shard")[:3] == ((0, 2), (1, 3), (4, 6))
    assert p.groups("dp_replicate")[:2] == ((0, 4), (1, 5))
    assert p.groups("pp")[:2] == ((0, 8), (1, 9))
    assert p.groups("ep") == ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11), (12, 13, 14, 15))
    assert p.groups("efsdp") == tuple((rank,) for rank in range(16))
    assert [p.node_of(rank) for rank in (0, 7, 8, 15)] == [0, 0, 1, 1]
    assert list(p.ranks_of(1)) == list(range(8, 16))


def test_batch_and_gradient_accumulation(spec):
    p = plan(spec(mesh={"gpusPerNode": 4}, training={"localBatchSize": 2, "globalBatchSize": 24, "seqLen": 512}))
    assert (p.global_batch_size, p.gradient_accumulation_steps, p.tokens_per_step) == (24, 3, 24 * 512)
    p = plan(spec(mesh={"gpusPerNode": 4, "tp": 2}, training={"localBatchSize": 3, "seqLen": 512}))
    assert (p.global_batch_size, p.gradient_accumulation_steps) == (6, 1)


@pytest.mark.parametrize("rank", [-1, 8])
def test_rank_node_or_axis_outside_the_mesh_raises(spec, rank):
    p = plan(spec(mesh={"gpusPerNode": 8}))
    for method in (p.coordinates, p.node_of):
        with pytest.raises(IndexError, match="outside the world of 8"):
            method(rank)
    with pytest.raises(IndexError, match="node 1 is outside the 1 nodes"):
        p.ranks_of(1)
    with pytest.raises(ValueError, match="no axis 'dp'"):
        p.groups("dp")


def test_plan_raises_the_first_problem_of_check(spec):
    bad = spec(mesh={"gpusPerNode": 8, "tp": 3}, training={"seqLen": 1000}, lrSchedule={"warmupSteps": 101})
    found = check(bad)
    assert [e.path for e in found] == ["spec.mesh.tp", "spec.training.seqLen", "spec.lrSchedule.warmupSteps"]
    with pytest.raises(SpecError) as caught:
        plan(bad)
    assert str(caught.value) == str(found[0])


def test_plan_does_not_modify_its_input(spec):
    job, config = spec(model={"overrides": {"num_hidden_layers": 2}}), {"num_attention_heads": 8, "text_config": {}}
    before = (job.model_copy(deep=True), dict(config))
    plan(job, config)
    assert (job, config) == before


# --- properties -------------------------------------------------------------------------------------------------


@st.composite
def _meshes(draw: st.DrawFn) -> dict[str, int]:
    """Mostly valid meshes: gpusPerNode is a multiple of tp, and nodes fits the other axes."""
    tp, cp, pp, rep, shard = (draw(st.sampled_from([1, 1, 2, 3, 4])) for _ in range(5))
    per = tp * draw(st.sampled_from([1, 2, 3, 4]))
    world = tp * cp * pp * rep * shard
    nodes = max(world // per, 1) if draw(st.booleans()) else draw(st.integers(1, 6))
    return {
        "nodes": nodes,
        "gpusPerNode": per,
        "tp": tp,
        "cp": cp,
        "pp": pp,
        "dpReplicate": rep,
        "dpShard": draw(st.sampled_from([-1, shard])),
        "ep": draw(st.sampled_from([1, 1, 2, 4, 8])),
    }


def _spec(mesh: dict[str, int]) -> JobSpec:
    seq_len = 128 * 2 * mesh["cp"] * mesh["tp"]
    return JobSpec.model_validate(
        {
            "model": {"name": "a/b"},
            "dataset": {"path": "/x"},
            "checkpoint": {"volume": "v"},
            "training": {"steps": 1, "seqLen": seq_len, "localBatchSize": 4},
            "mesh": mesh,
        }
    )


def _is_valid(mesh: dict[str, int]) -> bool:
    """The rules as in the definition of the mesh, independent of the code in rules.py."""
    world = mesh["nodes"] * mesh["gpusPerNode"]
    fixed = mesh["dpReplicate"] * mesh["cp"] * mesh["tp"] * mesh["pp"]
    shard = mesh["dpShard"] if mesh["dpShard"] > 0 else world / fixed
    inside = all(mesh["gpusPerNode"] % mesh[axis] == 0 for axis in ("tp", "ep"))
    return (
        fixed * shard == world and shard == int(shard) and inside and shard * mesh["cp"] * mesh["tp"] % mesh["ep"] == 0
    )


@settings(max_examples=400, deadline=None)
@given(mesh=_meshes())
def test_mesh_is_accepted_if_and_only_if_its_definition_holds(mesh):
    assert (check(_spec(mesh)) == []) == _is_valid(mesh)


def _covers_once(p: MeshPlan, axis: str) -> bool:
    groups = p.groups(axis)
    flat = sorted(rank for group in groups for rank in group)
    return flat == list(range(p.world_size)) and all(len(group) == p.degree(axis) for group in groups)


@settings(max_examples=300, deadline=None)
@given(mesh=_meshes().filter(_is_valid))
def test_every_rank_is_in_exactly_one_group_per_axis(mesh):
    p = plan(_spec(mesh))
    assert math.prod(p.degree(axis) for axis in AXES) == p.world_size == mesh["nodes"] * mesh["gpusPerNode"]
    assert all(_covers_once(p, axis) for axis in (*AXES, "ep", "efsdp"))
    for axis in ("tp", "ep"):
        assert all(len({p.node_of(rank) for rank in group}) == 1 for group in p.groups(axis))
    for axis in AXES:  # in a group, only the coordinate of this axis changes, in order
        for group in p.groups(axis):
            seen = [p.coordinates(rank) for rank in group]
            assert [c.pop(axis) for c in seen] == list(range(p.degree(axis)))
            assert all(c == seen[0] for c in seen)
    assert [p.rank_of(p.coordinates(rank)) for rank in range(p.world_size)] == list(range(p.world_size))
    assert sorted(r for node in range(p.degrees.nodes) for r in p.ranks_of(node)) == list(range(p.world_size))
