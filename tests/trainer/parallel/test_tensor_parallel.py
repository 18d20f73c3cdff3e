"""Which rows of a fused projection each rank sends and receives, and which layers are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hftitan_trainer.parallel.tensor_parallel import _cut_fused, _cut_head_norm, _cut_summed, _overlaps
from hftitan_trainer.process.errors import UserError


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("parts", [(64, 64), (32, 8, 8), (8, 32, 16), (24,)])
def test_each_rank_gets_its_share_of_each_part_in_order(parts, size):
    held = sum(parts) // size
    starts = [sum(parts[:number]) for number in range(len(parts))]
    for rank in range(size):
        received = [
            source * held + row
            for source in range(size)
            for start, stop in _overlaps(parts, size, source * held, held, rank)
            for row in range(start, stop)
        ]
        shares = (
            range(begin + rank * part // size, begin + (rank + 1) * part // size)
            for begin, part in zip(starts, parts, strict=True)
        )
        assert received == [row for share in shares for row in share]


class OtherLinear(nn.Linear):
    def forward(self, input):
        return super().forward(input)


@pytest.mark.parametrize("cut", [lambda it: _cut_summed(it, 2), lambda it: _cut_fused(it, [4, 4], None)])
def test_a_float8_layer_that_would_lose_its_forward_is_refused(cut):
    with pytest.raises(UserError, match=r"spec\.training\.float8: does not work with tensor .* or set mesh\.tp to 1"):
        cut(OtherLinear(8, 8))


def test_a_summed_layer_without_biases_keeps_its_forward():
    linear = OtherLinear(8, 8, bias=False)
    forward = linear.forward
    _cut_summed(linear, 2)
    assert linear.forward == forward


def test_a_norm_that_spans_ranks_in_an_unsupported_way_is_refused():
    with pytest.raises(ValueError, match=r"LayerNorm of .* spans heads of several ranks in an unsupported way"):
        _cut_head_norm(nn.LayerNorm(32), 4, 8, None)


def test_a_norm_of_one_head_is_whole_on_every_rank():
    norm = nn.LayerNorm(8)
    forward = norm.forward
    _cut_head_norm(norm, 4, 8, None)
    assert norm.forward == forward
    assert {*norm._sharding_config.state_shardings} == {"weight", "bias"}
    torch.testing.assert_close(norm(torch.ones(1, 8)), torch.zeros(1, 8))
