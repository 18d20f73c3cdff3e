"""The loader as torchtitan uses it: batches, the same rows on any mesh, errors in the training thread."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hftitan_api.models import DatasetSpec
from hftitan_trainer.process import slim
from hftitan_trainer.process.errors import UserError

slim.install()

from hftitan_trainer.data.loader import PackedDataLoader, dataloader_config  # noqa: E402
from hftitan_trainer.data.tokenizer import HFTokenizer, tokenizer_config  # noqa: E402


@pytest.fixture(scope="module")
def wrapped(tokenizer_folder: Path) -> HFTokenizer:
    return tokenizer_config().build(tokenizer_path=str(tokenizer_folder))


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "d.jsonl"
    for i in range(11):
        chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": f"answer {i}"}]
        with path.open("a") as file:
            file.write(json.dumps({"text": chr(97 + i) * (5 + 3 * i), "chat": chat}) + "\n")
    return path


def loader(
    wrapped: HFTokenizer, path: Path, *, rank: int = 0, world: int = 1, rows: int = 4, batch: int = 2, **spec: Any
) -> PackedDataLoader:
    config = dataloader_config(DatasetSpec(path=str(path), **spec), rows=rows, seed=5)
    seq_len = 48 if "messages_field" in spec else 16
    return config.build(
        dp_world_size=world,
        dp_rank=rank,
        tokenizer=wrapped,
        seq_len=seq_len,
        local_batch_size=batch,
        snapshot_every_n_steps=1,
    )


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip([*a[0].values(), a[1]], [*b[0].values(), b[1]], strict=True))


def test_a_batch_has_shifted_labels_and_restarting_positions(wrapped: HFTokenizer, lines: Path) -> None:
    inputs, labels = next(iter(loader(wrapped, lines)))
    assert {key: (value.shape, value.dtype) for key, value in inputs.items()} == {
        "input": ((2, 16), torch.int64),
        "positions": ((2, 16), torch.int64),
    }
    assert labels.shape == (2, 16)
    flat = [wrapped.hf.convert_ids_to_tokens(row.tolist()) for row in labels]
    starts = (inputs["positions"] == 0)[:, 1:]
    # The label before the start of a document is the end of the previous one.
    assert starts.any()
    for row, place in starts.nonzero().tolist():
        assert flat[row][place] == "</s>"


def test_a_part_of_a_chat_is_learnt(wrapped: HFTokenizer, lines: Path) -> None:
    _, labels = next(iter(loader(wrapped, lines, messages_field="chat")))
    assert (labels == -100).any()
    assert (labels != -100).any(dim=1).all()


@pytest.mark.parametrize("spec", [{}, {"messages_field": "chat"}])
def test_the_state_is_exact_although_batches_are_prepared_in_advance(
    wrapped: HFTokenizer, lines: Path, spec: dict[str, Any]
) -> None:
    unbroken = loader(wrapped, lines, rank=1, world=2, **spec)
    batches = iter(unbroken)
    for _ in range(12):
        resumed = loader(wrapped, lines, rank=1, world=2, **spec)
        resumed.load_state_dict(unbroken.state_dict())
        expected = next(batches)
        stream = iter(resumed)
        assert same(next(stream), expected)
        stream.close()  # type: ignore[attr-defined]
    batches.close()  # type: ignore[attr-defined]


MESHES = ((1, 8), (1, 2), (2, 4), (2, 1), (4, 2), (8, 1))
"""(data-parallel ranks, local batch size) for 8 rows in a step."""


def steps(loaders: list[PackedDataLoader], count: int, batch: int) -> list[list[list[int]]]:
    """Return the rows of `count` steps over all ranks, each as its tokens and labels in the order of the global
    batch."""
    streams = [iter(one) for one in loaders]
    found = []
    for _ in range(count):
        rows: list[list[int]] = []
        for stream in streams:
            for _ in range(8 // len(loaders) // batch):
                inputs, labels = next(stream)
                rows += torch.cat([inputs["input"], inputs["positions"], labels], dim=1).tolist()
        found.append(rows)
    for stream in streams:
        stream.close()  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("spec", [{}, {"messages_field": "chat"}])
def test_every_step_has_the_same_rows_on_any_mesh_and_after_a_change_of_mesh(
    wrapped: HFTokenizer, lines: Path, spec: dict[str, Any]
) -> None:
    def mesh(world: int, batch: int) -> list[PackedDataLoader]:
        return [loader(wrapped, lines, rank=rank, world=world, rows=8, batch=batch, **spec) for rank in range(world)]

    unbroken = steps(mesh(1, 8), 9, 8)
    assert len({tuple(row) for step in unbroken[:2] for row in step}) > 4
    for world, batch in MESHES:
        first = mesh(world, batch)
        assert steps(first, 3, batch) == unbroken[:3]
        saved: dict[str, Any] = {}
        for one in first:
            saved.update(one.state_dict())
        assert set(saved) == {*(f"lane_{lane}" for lane in range(8)), "documents"}
        for again, small in MESHES:
            second = mesh(again, small)
            for one in second:
                one.load_state_dict({key: saved[key] for key in one.state_dict()})
            assert steps(second, 6, small) == unbroken[3:], (world, again)


def test_the_state_does_not_grow_with_the_documents(wrapped: HFTokenizer, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("words and " * 5000)
    made = loader(wrapped, tmp_path / "long.txt", rows=2)
    steps([made], 1, 8)
    assert made.state_dict()["lane_0"] == b'{"stream": 0, "counts": [0, 0, 0, 0], "start": 16}'


@pytest.mark.parametrize("world", [1, 2, 8])
def test_consumed_data_adds_up_over_the_ranks_and_survives_a_change_of_mesh(
    wrapped: HFTokenizer, lines: Path, world: int
) -> None:
    loaders = [
        loader(wrapped, lines, rank=rank, world=world, rows=8, batch=1, long_documents="drop") for rank in range(world)
    ]
    steps(loaders, 4, 1)
    saved = {key: value for one in loaders for key, value in one.state_dict().items()}
    (whole,) = [loader(wrapped, lines, rows=8, batch=1, long_documents="drop")]
    whole.load_state_dict(saved)
    seen = whole.seen()
    for name in ("documents", "too_long", "empty", "truncated", "epoch"):
        assert sum(getattr(one.seen(), name) for one in loaders) == pytest.approx(getattr(seen, name))
    assert seen.epoch == pytest.approx(seen.documents / 11)
    assert (seen.truncated, seen.empty) == (0, 0)
    assert 0 < seen.too_long < seen.documents


def test_another_number_of_documents_is_a_warning(
    wrapped: HFTokenizer, lines: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = loader(wrapped, lines).state_dict()
    with lines.open("a") as file:
        file.write(json.dumps({"text": "one more"}) + "\n")
    loader(wrapped, lines).load_state_dict(state)
    assert "spec.dataset: the checkpoint was written with 11 documents, now there are 12" in caplog.text


def test_an_invalid_line_is_raised_in_the_training_thread(
    wrapped: HFTokenizer, lines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hftitan_trainer.data.documents.CHECKED_BYTES", 10)
    content = lines.read_text().splitlines()
    content[5] = content[5][:-3]
    lines.write_text("\n".join(content))
    with pytest.raises(UserError, match=r"d\.jsonl:6: invalid JSON"):
        for _ in zip(loader(wrapped, lines), range(100), strict=False):
            pass


def test_bos_is_added_only_if_the_tokenizer_adds_it(
    tmp_path: Path, wrapped: HFTokenizer, byte_tokenizer: Callable[[], Any]
) -> None:
    from tokenizers.processors import TemplateProcessing

    from hftitan_trainer.data.loader import text_encoder

    assert list(text_encoder(wrapped)("a", "").ids) == [*wrapped.encode("a"), wrapped.eos_id]
    with_bos = byte_tokenizer()
    with_bos.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    with_bos.save_pretrained(tmp_path / "bos")
    tokenizer = tokenizer_config().build(tokenizer_path=str(tmp_path / "bos"))
    assert list(text_encoder(tokenizer)("a", "").ids) == [1, *wrapped.encode("a"), 2]
    assert text_encoder(tokenizer)(" \n", "").ids == []


def test_a_missing_tokenizer_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"spec\.model\.name: transformers cannot load a tokenizer"):
        tokenizer_config().build(tokenizer_path=str(tmp_path))


def test_hub_streams_resume_exactly_and_repeat(wrapped: HFTokenizer) -> None:
    from datasets import Dataset

    from hftitan_trainer.data.documents import Fields
    from hftitan_trainer.data.streams import HubStream

    records = [{"text": str(i)} for i in range(7)]
    fields = Fields(DatasetSpec(name="a/b", streaming=True), "spec.dataset")

    def stream(lane: int = 0, lanes: int = 1) -> HubStream:
        dataset = Dataset.from_list(records).to_iterable_dataset(num_shards=1)
        return HubStream(dataset, "a/b", fields, lane=lane, lanes=lanes)

    unbroken = stream(1, 2)
    assert [unbroken.take()[0] for _ in range(3)] == ["1", "3", "5"]
    for _ in range(7):
        state = json.loads(json.dumps(unbroken.state()))
        resumed = stream(1, 2)
        resumed.restore(state)
        assert resumed.state() == state
        assert resumed.take()[0] == unbroken.take()[0]
    assert unbroken.epoch >= 2


def test_errors_in_a_stream_name_the_record() -> None:
    from datasets import IterableDataset

    from hftitan_trainer.data.documents import Fields
    from hftitan_trainer.data.streams import HubStream
    from hftitan_trainer.process.errors import NetworkError

    fields = Fields(DatasetSpec(name="a/b", streaming=True), "spec.dataset")

    def after_one(problem: Any) -> str:
        def records() -> Any:
            yield {"text": "fine"}
            if isinstance(problem, Exception):
                raise problem
            yield from [] if problem is None else [problem]

        stream = HubStream(IterableDataset.from_generator(records), "a/b", fields, lane=0, lanes=1, infinite=False)
        assert stream.take() == ("fine", "a/b record 0 of rank 0")
        with pytest.raises((UserError, NetworkError)) as caught:
            stream.take()
        return f"{type(caught.value).__name__}: {caught.value}"

    assert after_one({"text": 5}) == (
        "UserError: spec.dataset.textField: a/b record 1 of rank 0: field 'text' is int, not text"
    )
    assert after_one({"body": "x"}) == (
        "UserError: spec.dataset.textField: a/b record 1 of rank 0: no field 'text'; the record has: body"
    )
    assert after_one(ValueError("JSON parse error: row 7")) == (
        "UserError: spec.dataset.name: a/b after record 0 of rank 0 cannot be read: ValueError: JSON parse error: row 7"
    )
    assert after_one(ConnectionError("reset by peer")) == (
        "NetworkError: the hub cannot be read for a/b after record 0 of rank 0: reset by peer"
    )
    empty = HubStream(IterableDataset.from_generator(lambda: iter(())), "a/b", fields, lane=0, lanes=1)
    with pytest.raises(UserError, match=r"spec\.dataset\.name: a/b has no records for rank 0"):
        empty.take()


def test_an_empty_split_of_the_hub_is_a_user_error(wrapped: HFTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Dataset

    monkeypatch.setattr("hftitan_trainer.data.loader.load_hub", lambda *_args: Dataset.from_dict({"text": []}))
    config = dataloader_config(DatasetSpec(name="a/b", split="test"), rows=1, seed=1)
    with pytest.raises(UserError, match=r"spec\.dataset\.split: the split test of a/b is empty"):
        config.build(dp_world_size=1, dp_rank=0, tokenizer=wrapped, seq_len=8, local_batch_size=1)


def test_slim_replaces_the_text_datasets() -> None:
    from torchtitan.hf_datasets import text_datasets

    config = text_datasets.HuggingFaceTextDataLoader.Config(dataset="c4", infinite=False)
    with pytest.raises(NotImplementedError, match="replaced by hftitan_trainer"):
        config.build(dp_world_size=1)
    with pytest.raises(AttributeError, match="slim"):
        _ = text_datasets.nothing
