"""The dataloader component: a dataset of the spec to batches of packed rows."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torchtitan.components.dataloader import BaseDataLoader

from hftitan_api.models import DatasetSpec
from hftitan_trainer.chat import ChatEncoder, Tokens
from hftitan_trainer.documents import Fields, Table, load_hub, open_path
from hftitan_trainer.errors import UserError
from hftitan_trainer.packing import Deck, HubStream, Packer, Stream
from hftitan_trainer.tokenizer import HFTokenizer

Batch = tuple[dict[str, torch.Tensor], torch.Tensor]

_AHEAD = 2
"""Batches made in advance, by a thread: tokenizing (which releases the interpreter) overlaps with the step."""


class PackedDataLoader(BaseDataLoader):
    """Batches ({"input", "positions"}, labels), each [local_batch_size, seq_len] int64, on the CPU.

    Positions restart at 0 with every document and row; labels are shifted already, IGNORE_INDEX where nothing is to be
    learnt. Its state after a batch is exact: a loader restored from it gives the very next batch.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        spec: DatasetSpec
        seed: int = 42
        infinite: bool = True
        field: str = "spec.dataset"
        """Path of `spec` in the job, for error messages."""

    def __init__(
        self,
        config: Config,
        *,
        dp_world_size: int,
        dp_rank: int,
        tokenizer: HFTokenizer,
        seq_len: int,
        local_batch_size: int,
        **_kwargs: Any,
    ) -> None:
        self._key = f"dp_rank_{dp_rank}"
        self._world = dp_world_size
        self._batch_size = local_batch_size
        spec, fields = config.spec, Fields(config.spec, config.field)
        encode = ChatEncoder(tokenizer.hf, config.field).encode if fields.chat else text_encoder(tokenizer)
        self._open_stream = _stream_opener(config, fields, seq_len, dp_rank, dp_world_size)
        source = f"{config.field}.{'path' if spec.path is not None else 'name'}"
        pad = tokenizer.eos_id or 0

        def packer() -> Packer:
            return Packer(self._open_stream(), encode, seq_len, whole=fields.chat, pad=pad, field=source)

        self._new_packer = packer
        self._state: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[Batch]:
        packer = self._new_packer()
        if self._state is not None:
            packer.restore(self._state)
        ready: queue.Queue[tuple[Batch, dict[str, Any]] | BaseException] = queue.Queue(_AHEAD)
        stopped = threading.Event()
        worker = threading.Thread(target=self._produce, args=(packer, ready, stopped), name="hftitan-data", daemon=True)
        worker.start()
        try:
            while True:
                item = ready.get()
                if isinstance(item, StopIteration):
                    return
                if isinstance(item, BaseException):
                    raise item
                batch, self._state = item
                yield batch
        finally:
            stopped.set()

    def _produce(
        self,
        packer: Packer,
        ready: queue.Queue[tuple[Batch, dict[str, Any]] | BaseException],
        stopped: threading.Event,
    ) -> None:
        item: tuple[Batch, dict[str, Any]] | BaseException
        while not stopped.is_set():
            try:
                rows = [packer.row() for _ in range(self._batch_size)]
                batch = (
                    {
                        "input": torch.tensor([r.inputs for r in rows]),
                        "positions": torch.tensor([r.positions for r in rows]),
                    },
                    torch.tensor([r.labels for r in rows]),
                )  # fmt: skip
                item = (batch, packer.state())
            except BaseException as error:  # handed to the training thread, which raises it
                item = error
            while not stopped.is_set():
                try:
                    ready.put(item, timeout=0.5)
                    break
                except queue.Full:
                    continue
            if isinstance(item, BaseException):
                return

    def state_dict(self) -> dict[str, Any]:
        """One key for each data-parallel rank, so that ranks that read the same batches save it once."""
        return {self._key: json.dumps(self._state).encode(), "world_size": self._world}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises UserError when the state is of another data-parallel degree."""
        if not state_dict:
            return
        if state_dict["world_size"] != self._world:
            raise UserError(
                "spec.mesh",
                f"the checkpoint was written by {state_dict['world_size']} data-parallel ranks, now there are "
                f"{self._world}; keep dpReplicate x dpShard, or start afresh in another spec.checkpoint.folder",
            )
        self._state = json.loads(state_dict[self._key])


def dataloader_config(
    dataset: DatasetSpec, *, seed: int, field: str = "spec.dataset", infinite: bool = True
) -> PackedDataLoader.Config:
    """For torchtitan's Trainer.Config.dataloader; `field` is where `dataset` stands in the job."""
    return PackedDataLoader.Config(spec=dataset, seed=seed, field=field, infinite=infinite)


def text_encoder(tokenizer: HFTokenizer) -> Callable[[str, str], Tokens]:
    """Text to tokens as the model expects it: BOS if its tokenizer puts one there, EOS at the document's end."""
    probe = tokenizer.hf("a")["input_ids"]
    starts_with_bos = tokenizer.bos_id is not None and probe[:1] == [tokenizer.bos_id]

    def encode(text: str, _where: str) -> Tokens:
        if not text.strip():
            return Tokens([])
        return Tokens(tokenizer.encode(text, add_bos=starts_with_bos, add_eos=True))

    return encode


def _stream_opener(
    config: PackedDataLoader.Config, fields: Fields, seq_len: int, rank: int, world: int
) -> Callable[[], Stream]:
    """Opens the dataset now, so that a mistake shows early, and returns how to read it from its start."""
    spec, prefix = config.spec, config.field
    if spec.name is not None:
        dataset = load_hub(spec, prefix)
        if spec.streaming:
            name = spec.name
            return lambda: HubStream(dataset, name, fields, rank=rank, world=world, infinite=config.infinite)
        if len(dataset) == 0:
            raise UserError(f"{prefix}.split", f"the split {spec.split} of {spec.name} is empty")
        documents: Any = Table(dataset, spec.name, fields)
    else:
        documents = open_path(spec, seq_len, prefix)
    return lambda: Deck(documents, seed=config.seed, rank=rank, world=world, infinite=config.infinite)
