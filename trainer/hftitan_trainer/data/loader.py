"""The dataloader component: from a dataset of the spec to batches of packed rows."""

from __future__ import annotations

import itertools
import json
import logging
import queue
import threading
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torchtitan.components.dataloader import BaseDataLoader

from hftitan_api.models import DatasetSpec
from hftitan_trainer.data.chat import ChatEncoder, Tokens
from hftitan_trainer.data.documents import Fields, Table, load_hub, open_path
from hftitan_trainer.data.packing import Counts, Packer
from hftitan_trainer.data.streams import Deck, HubStream, Stream
from hftitan_trainer.data.tokenizer import HFTokenizer
from hftitan_trainer.process.errors import UserError
from hftitan_trainer.telemetry.observer import DataSeen

logger = logging.getLogger(__name__)

Batch = tuple[dict[str, torch.Tensor], torch.Tensor]
_Item = tuple[Batch, dict[int, Any] | None] | BaseException

_AHEAD = 2
"""Batches that a thread prepares in advance, so that tokenizing (which releases the GIL) overlaps with the step."""


class PackedDataLoader(BaseDataLoader):
    """Batches ({"input", "positions"}, labels), each [local_batch_size, seq_len] int64, on the CPU.

    Positions restart at 0 with every document and row. Labels are already shifted; IGNORE_INDEX marks tokens without
    loss. Each data-parallel rank has an equal, contiguous part of the job's lanes (streams.py), and a batch takes the
    next row of each lane in turn. The state is saved by lane: exact after every step, and valid for any number of
    ranks. A hub stream has one lane per rank.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        spec: DatasetSpec
        rows: int
        """Rows of an optimizer step over all ranks."""
        seed: int = 42
        infinite: bool = True
        """False: one pass over the data, then endless rows of padding, so that all ranks can end together."""
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
        self._batch_size = local_batch_size
        spec, fields = config.spec, Fields(config.spec, config.field)
        encode = ChatEncoder(tokenizer.hf, config.field).encode if fields.chat else text_encoder(tokenizer)
        source = f"{config.field}.{'path' if spec.path is not None else 'name'}"
        pad = tokenizer.eos_id or 0
        self._lanes = dp_world_size if spec.streaming else config.rows
        share = self._lanes // dp_world_size
        self._own = range(dp_rank * share, (dp_rank + 1) * share)
        open_stream, self._documents = _stream_opener(config, fields, seq_len, self._lanes)
        self._field = config.field

        def packer(lane: int) -> Packer:
            return Packer(
                open_stream(lane),
                encode,
                seq_len,
                whole=fields.chat,
                long=spec.long_documents,
                pad=pad,
                field=source,
                pad_end=not config.infinite,
            )

        self._packer = packer
        self._states: dict[int, Any] = {}
        """State of each lane, after the newest batch that completed a round over the lanes."""

    def __iter__(self) -> Iterator[Batch]:
        packers = {lane: self._packer(lane) for lane in self._own}
        for lane, state in self._states.items():
            packers[lane].restore(state)
        ready: queue.Queue[_Item] = queue.Queue(_AHEAD)
        stopped = threading.Event()
        worker = threading.Thread(
            target=self._produce, args=(packers, ready, stopped), name="hftitan-data", daemon=True
        )
        worker.start()
        try:
            while True:
                item = ready.get()
                if isinstance(item, StopIteration):
                    return
                if isinstance(item, BaseException):
                    raise item
                batch, states = item
                self._states = states or self._states
                yield batch
        finally:
            stopped.set()

    def _produce(self, packers: dict[int, Packer], ready: queue.Queue[_Item], stopped: threading.Event) -> None:
        item: _Item
        turns = itertools.cycle(packers.values())
        made = 0
        while not stopped.is_set():
            try:
                rows = [next(turns).row() for _ in range(self._batch_size)]
                made += self._batch_size
                batch = (
                    {
                        "input": torch.tensor([r.inputs for r in rows]),
                        "positions": torch.tensor([r.positions for r in rows]),
                    },
                    torch.tensor([r.labels for r in rows]),
                )  # fmt: skip
                round_ended = made % len(packers) == 0
                item = (batch, {lane: packer.state() for lane, packer in packers.items()} if round_ended else None)
            except BaseException as error:  # the training thread raises it
                item = error
            while not stopped.is_set():
                try:
                    ready.put(item, timeout=0.5)
                    break
                except queue.Full:
                    continue
            if isinstance(item, BaseException):
                return

    def seen(self) -> DataSeen:
        """Return what this rank's lanes have consumed up to the newest step, including earlier attempts."""
        seen = DataSeen()
        for state in self._states.values():
            counts, stream = Counts(*state["counts"]), state["stream"]
            seen.epoch += stream / self._documents if self._documents else stream["epoch"] / self._lanes
            seen.documents += counts.documents
            seen.truncated += counts.truncated
            seen.too_long += counts.too_long
            seen.empty += counts.empty
        return seen

    def rewind(self) -> None:
        """Start the next iteration at the beginning of the data."""
        self._states = {}

    def state_dict(self) -> dict[str, Any]:
        """Return one key for each lane, so that ranks that read the same batches save it once."""
        states = {f"lane_{lane}": json.dumps(self._states.get(lane)).encode() for lane in self._own}
        return {**states, "documents": self._documents}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the lanes. They must be the lanes of the saved state: checkpoint/manager.py has compared the
        layouts."""
        if not state_dict:
            return
        if state_dict["documents"] != self._documents:
            logger.warning(
                "%s: the checkpoint was written with %s documents, now there are %s: training resumes at the same "
                "position of a different order, so some documents may repeat",
                self._field, state_dict["documents"], self._documents,
            )  # fmt: skip
        found = {lane: json.loads(state_dict[f"lane_{lane}"]) for lane in self._own}
        self._states = {lane: state for lane, state in found.items() if state is not None}


def dataloader_config(
    dataset: DatasetSpec, *, rows: int, seed: int, field: str = "spec.dataset", infinite: bool = True
) -> PackedDataLoader.Config:
    """Return torchtitan's Trainer.Config.dataloader; `field` is the path of `dataset` in the job."""
    return PackedDataLoader.Config(spec=dataset, rows=rows, seed=seed, field=field, infinite=infinite)


def text_encoder(tokenizer: HFTokenizer) -> Callable[[str, str], Tokens]:
    """Return a function from text to tokens, with BOS if the model's tokenizer adds one, and EOS at the document's
    end."""
    probe = tokenizer.hf("a")["input_ids"]
    starts_with_bos = tokenizer.bos_id is not None and probe[:1] == [tokenizer.bos_id]

    def encode(text: str, _where: str) -> Tokens:
        if not text.strip():
            return Tokens([])
        # An array needs four bytes per token; every lane keeps a document.
        return Tokens(array("i", tokenizer.encode(text, add_bos=starts_with_bos, add_eos=True)))

    return encode


def _stream_opener(
    config: PackedDataLoader.Config, fields: Fields, seq_len: int, lanes: int
) -> tuple[Callable[[int], Stream], int]:
    """Open the dataset now, so that errors show early. Return (how to read a lane from its start, documents or 0)."""
    spec, prefix = config.spec, config.field
    if spec.name is not None:
        dataset = load_hub(spec, prefix)
        if spec.streaming:
            name = spec.name
            return lambda lane: HubStream(dataset, name, fields, lane=lane, lanes=lanes, infinite=config.infinite), 0
        if len(dataset) == 0:
            raise UserError(f"{prefix}.split", f"the split {spec.split} of {spec.name} is empty")
        documents: Any = Table(dataset, spec.name, fields)
    else:
        documents = open_path(spec, seq_len, prefix)
    return (
        lambda lane: Deck(documents, seed=config.seed, lane=lane, lanes=lanes, infinite=config.infinite),
        len(documents),
    )
