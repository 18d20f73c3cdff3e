"""Expert parallelism: its collectives do not overlap."""

from types import SimpleNamespace

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from hftitan_trainer.parallel import experts


class TwoExperts(nn.Module):
    """Adds to each token the weights of its routes."""

    num_experts = 2

    def forward(self, hidden, chosen, weights):
        return hidden + weights.sum(-1, keepdim=True)


def test_a_gather_ends_before_the_next_one_starts(tmp_path, monkeypatch):
    """On gloo, overlapping gathers corrupt the heap: in about one of four runs of 1,500 steps on a busy machine."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        block = SimpleNamespace(experts=TwoExperts())
        experts.spread(block, init_device_mesh("cpu", (1,), mesh_dim_names=("ep",)))
        running = []

        def watched(name):
            collective = getattr(collectives, name)

            def start(*args):
                assert all(gathered.completed for gathered in running), "two collectives at once"
                running.append(collective(*args))
                return running[-1]

            monkeypatch.setattr(collectives, name, start)

        for name in ("all_gather_single_autograd", "all_gather_single", "reduce_scatter_single_autograd"):
            watched(name)
        hidden = torch.randn(6, 4, requires_grad=True)
        chosen, weights = torch.randint(0, 2, (6, 1)), torch.rand(6, 1, requires_grad=True)
        out = block.experts.forward(hidden, chosen, weights)
        assert torch.equal(out, hidden + weights)
        assert len(running) >= 4
        out.sum().backward()
        assert hidden.grad is not None
        assert weights.grad is not None
    finally:
        dist.destroy_process_group()
