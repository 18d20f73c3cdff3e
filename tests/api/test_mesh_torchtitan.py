"""The layout of ranks is torchtitan's: compares the groups with its ParallelDims, without starting processes."""

from __future__ import annotations

import pytest

from hftitan_api.mesh import plan


@pytest.mark.parametrize(
    "mesh",
    [
        {"nodes": 2, "gpusPerNode": 8, "pp": 2, "dpReplicate": 2, "tp": 2, "ep": 4},
        {"nodes": 1, "gpusPerNode": 8, "cp": 2, "tp": 2, "ep": 2},
    ],
)
def test_groups_equal_those_of_torchtitan(spec, mesh):
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore
    from torchtitan.distributed import parallel_dims

    p = plan(spec(mesh=mesh, training={"localBatchSize": 4}))
    d = p.degrees
    parallel_dims.device_type = "cpu"
    for rank in (0, 5, p.world_size - 1):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=p.world_size)
        try:
            dims = parallel_dims.ParallelDims(
                dp_replicate=d.dp_replicate,
                dp_shard=d.dp_shard,
                cp=d.cp,
                tp=d.tp,
                pp=d.pp,
                ep=d.ep,
                world_size=p.world_size,
            )
            for axis in ("pp", "dp_replicate", "dp_shard", "cp", "tp", "ep"):
                built = dims.get_optional_mesh(axis, include_singleton_axes=True)
                ours = next(group for group in p.groups(axis) if rank in group)
                assert tuple(built.mesh.flatten().tolist()) == ours, axis
        finally:
            dist.destroy_process_group()
