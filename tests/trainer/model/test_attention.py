"""Masks of packed rows: dense on CPUs, flex on GPUs, and which of them a layer uses."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention

from hftitan_trainer.model.attention import (
    PLAIN_CAUSAL,
    WHOLE,
    WINDOWED,
    LayeredMask,
    block_mask,
    dense_mask,
    document_mask,
    of_layer,
    sdpa_attention,
)

TWO = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])


def test_rows_of_one_document_need_no_mask():
    one, two = torch.arange(4)[None], torch.tensor([[0, 1, 0, 1]])
    assert document_mask(one).shape == PLAIN_CAUSAL
    expected = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]], dtype=torch.bool)
    assert document_mask(two)[0, 0].equal(expected)
    assert dense_mask(two).equal(document_mask(two))
    assert dense_mask(one)[0, 0].equal(torch.ones(4, 4, dtype=torch.bool).tril())


def test_rows_longer_than_the_window_get_a_second_mask():
    one = torch.arange(4)[None]
    whole, windowed = document_mask(one, 2)[0]
    assert whole.equal(torch.ones(4, 4, dtype=torch.bool).tril())
    expected = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]], dtype=torch.bool)
    assert windowed.equal(expected)
    assert document_mask(one, 4).shape == PLAIN_CAUSAL
    assert dense_mask(one, 2).equal(document_mask(one, 2))


def test_a_layer_uses_the_mask_of_its_type():
    mask = document_mask(TWO, 3)
    assert of_layer(mask, None).equal(mask[:, :1])
    assert of_layer(mask, 3).equal(mask[:, 1:])
    short = document_mask(TWO, 9)
    assert of_layer(short, 9).equal(short)


def test_attention_sinks_are_refused_on_cpus():
    q = torch.randn(1, 2, 4, 8)
    with pytest.raises(NotImplementedError, match="sinks"):
        sdpa_attention(torch.nn.Module(), q, q, q, document_mask(torch.arange(4)[None]), s_aux=torch.ones(2))


@pytest.fixture
def flex_masks(monkeypatch):
    """The masks that the model passes to transformers on GPUs, for TWO and a window of 3, not compiled."""
    from torchtitan.models.common import attention as titan

    monkeypatch.setattr(titan, "create_attention_mask", create_block_mask)
    return LayeredMask({WHOLE: block_mask(TWO, TWO.shape[1]), WINDOWED: block_mask(TWO, 3)})


def test_flex_masks_of_gpus_equal_dense_masks_of_cpus(flex_masks):
    seq = TWO.shape[1]
    assert len(flex_masks.shape) == 4, "otherwise transformers would create its own mask"
    for window, dense in ((None, document_mask(TWO)), (3, document_mask(TWO, 3)[:, 1:])):
        layer = of_layer(flex_masks, window)
        assert create_mask(layer.mask_mod, 1, 1, seq, seq, device="cpu").equal(dense)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("window", [None, 3])
def test_flex_attention_accepts_the_layered_mask(flex_masks, window):
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, TWO.shape[1], 8) for _ in range(3))
    got = flex_attention(query, key, value, block_mask=of_layer(flex_masks, window))
    dense = of_layer(document_mask(TWO, 3), window)
    want, _ = sdpa_attention(torch.nn.Module(), query, key, value, dense)
    torch.testing.assert_close(got.transpose(1, 2), want)


@pytest.fixture
def rank_of_two(monkeypatch):
    """Makes this process a rank of a mesh of two, without communication to the other rank."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.experimental._context_parallel import _attention
    from torch.testing._internal.distributed.fake_pg import FakeStore

    monkeypatch.setattr(_attention, "_compiled_create_block_mask", create_block_mask)

    def become(rank):
        dist.init_process_group("fake", rank=rank, world_size=2, store=FakeStore())
        return init_device_mesh("cpu", (2,))

    yield become
    if dist.is_initialized():
        dist.destroy_process_group()


def test_context_parallelism_splits_both_masks_alike(monkeypatch, rank_of_two):
    """As on GPUs: torchtitan sorts blocks by their work, then gives each rank its queries."""
    import torch.distributed as dist
    from torchtitan.distributed.context_parallel import cp_shard
    from torchtitan.models.common import attention as titan

    monkeypatch.setattr(titan, "create_attention_mask", create_block_mask)
    seq, window = 512, 100
    positions = torch.cat([torch.arange(300), torch.arange(212)])[None]
    shares = []
    for rank in (0, 1):
        masks = {WHOLE: block_mask(positions, seq), WINDOWED: block_mask(positions, window)}
        (places,), cut = cp_shard(rank_of_two(rank), (torch.arange(seq)[None],), masks, "ptrr", ptrr_mask_key=WHOLE)
        shares.append((places[0], LayeredMask(cut)))
        dist.destroy_process_group()
    keys = torch.cat([places for places, _ in shares])
    assert keys.tolist() != sorted(keys.tolist()), "blocks are reordered"
    for places, layered in shares:
        for kind, dense in ((None, document_mask(positions)), (window, document_mask(positions, window)[:, 1:])):
            got = create_mask(of_layer(layered, kind).mask_mod, 1, 1, len(places), seq, device="cpu")
            assert got[0, 0].equal(dense[0, 0][places][:, keys])
