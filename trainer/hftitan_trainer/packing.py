"""From documents to rows of exactly seq_len tokens, on each data-parallel rank, resumable to the token. No torch.

All ranks deal the same endless deck: epoch after epoch, each in its own order, document g of the deck goes to rank g
modulo the number of ranks. So every epoch meets each document once, however few there are, and a rank's place in the
deck is one number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from hftitan_trainer.chat import Tokens
from hftitan_trainer.documents import Documents, Fields
from hftitan_trainer.errors import UserError

IGNORE_INDEX = -100
"""Label of a token that is not learnt; torchtitan.components.loss has the same."""

_MASK64 = (1 << 64) - 1
_ROUNDS = 6


def _mix(value: int) -> int:
    """splitmix64's finaliser: 64 bits to 64 well-mixed bits."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


class Permutation:
    """A pseudo-random order of 0..n-1 that is computed for each index: no memory, however many documents.

    A Feistel network over the smallest even number of bits that holds n, walked until it lands inside.
    """

    def __init__(self, n: int, seed: int, epoch: int) -> None:
        self._n = n
        self._half = max(1, ((n - 1).bit_length() + 1) // 2)
        self._keys = [_mix(_mix(_mix(seed) ^ epoch) ^ number) for number in range(_ROUNDS)]

    def __call__(self, index: int) -> int:
        mask = (1 << self._half) - 1
        while True:
            left, right = index >> self._half, index & mask
            for key in self._keys:
                left, right = right, left ^ (_mix(right ^ key) & mask)
            index = left << self._half | right
            if index < self._n:
                return index


class Stream(Protocol):
    """Documents one after the other; `epoch` counts the passes over all of them."""

    epoch: int

    def take(self) -> tuple[Any, str]:
        """The next document and its place. Raises StopIteration at the end of a finite stream."""

    def state(self) -> Any:
        """JSON values from which `restore` goes on."""

    def restore(self, state: Any) -> None: ...


class Deck:
    """This rank's share of shuffled, indexed documents."""

    def __init__(self, documents: Documents, *, seed: int, rank: int, world: int, infinite: bool = True) -> None:
        self._documents = documents
        self._seed = seed
        self._rank = rank
        self._world = world
        self._infinite = infinite
        self._taken = 0
        self.epoch = 0
        self._order = Permutation(len(documents), seed, 0)

    def take(self) -> tuple[Any, str]:
        epoch, place = divmod(self._rank + self._taken * self._world, len(self._documents))
        if epoch and not self._infinite:
            raise StopIteration
        if epoch != self.epoch:
            self.epoch = epoch
            self._order = Permutation(len(self._documents), self._seed, epoch)
        index = self._order(place)
        self._taken += 1
        return self._documents[index], self._documents.where(index)

    def state(self) -> Any:
        return self._taken

    def restore(self, state: Any) -> None:
        self._taken = int(state)
        self.epoch = -1  # so that the next take makes its order


class HubStream:
    """This rank's share of a datasets.IterableDataset, in the order of the hub."""

    def __init__(
        self, dataset: Any, name: str, fields: Fields, *, rank: int, world: int, infinite: bool = True
    ) -> None:
        from datasets.distributed import split_dataset_by_node

        self._dataset = split_dataset_by_node(dataset, rank, world)
        self._name = name
        self._fields = fields
        self._infinite = infinite
        self._items: Any = None
        self._index = 0
        self.epoch = 0

    def take(self) -> tuple[Any, str]:
        if self._items is None:
            self._items = iter(self._dataset)
        while True:
            record = next(self._items, None)
            if record is not None:
                break
            if not self._infinite:
                raise StopIteration
            if self._index == 0:
                raise UserError(f"{self._fields.prefix}.name", f"{self._name} has no records for this rank")
            self.epoch += 1
            self._index = 0
            self._dataset.set_epoch(self.epoch)
            self._items = iter(self._dataset)
        self._index += 1
        where = f"{self._name} record {self._index - 1} of this rank"
        return self._fields.of(record, where), where

    def state(self) -> Any:
        return {"epoch": self.epoch, "index": self._index, "dataset": self._dataset.state_dict()}

    def restore(self, state: Any) -> None:
        self.epoch, self._index = state["epoch"], state["index"]
        self._dataset.set_epoch(self.epoch)
        self._dataset.load_state_dict(state["dataset"])
        self._items = None


@dataclass(frozen=True, slots=True)
class Row:
    """seq_len tokens: inputs, what each should predict (or IGNORE_INDEX), and positions that restart at 0 with each
    document and each row."""

    inputs: list[int]
    labels: list[int]
    positions: list[int]


class Packer:
    """Fills rows with documents.

    With `whole`, documents (chats) are never split: what does not fit opens the next row and the rest of the row is
    padding; one longer than a row loses its end. Otherwise a document goes on in the next row.
    """

    def __init__(
        self,
        stream: Stream,
        encode: Callable[[Any, str], Tokens],
        seq_len: int,
        *,
        whole: bool,
        pad: int,
        field: str,
    ) -> None:
        self._stream = stream
        self._encode = encode
        self._seq_len = seq_len
        self._whole = whole
        self._pad = pad
        self._field = field
        self._pending: Tokens | None = None
        self._start = 0
        """Where the next row goes on in the pending document."""

    def row(self) -> Row:
        """The next row. Raises StopIteration at the end of a finite stream (an unfinished row of text is dropped, one
        of chats padded), UserError when a whole epoch has nothing to learn."""
        row = Row([], [], [])
        while (room := self._seq_len - len(row.inputs)) > 0:
            if self._pending is None:
                try:
                    self._pending = self._next_document()
                except StopIteration:
                    if not (self._whole and row.inputs):
                        raise
                    self._fill(row, room)
                    break
            ids, learn, start = self._pending.ids, self._pending.learn, self._start
            left = len(ids) - 1 - start
            if self._whole and left > room and row.inputs:
                self._fill(row, room)
                break
            size = min(room, left)
            shifted = slice(start + 1, start + size + 1)
            row.inputs.extend(ids[start : start + size])
            row.labels.extend(_labels(ids[shifted], learn and learn[shifted]))
            row.positions.extend(range(size))
            if left > size and not self._whole:
                self._start += size
            else:
                self._pending, self._start = None, 0
        return row

    def state(self) -> dict[str, Any]:
        """JSON values; only between rows."""
        pending = None
        if self._pending is not None:
            learn = self._pending.learn
            pending = {
                "ids": self._pending.ids[self._start :],
                "learn": None if learn is None else [int(wanted) for wanted in learn[self._start :]],
            }
        return {"stream": self._stream.state(), "pending": pending}

    def restore(self, state: dict[str, Any]) -> None:
        self._stream.restore(state["stream"])
        pending = state["pending"]
        self._start = 0
        self._pending = None
        if pending is not None:
            learn = pending["learn"]
            self._pending = Tokens(pending["ids"], None if learn is None else [bool(wanted) for wanted in learn])

    def _next_document(self) -> Tokens:
        """The next document with something to learn in it."""
        began: int | None = None
        while True:
            document, where = self._stream.take()
            began = self._stream.epoch if began is None else began
            tokens = self._encode(document, where)
            limit = self._seq_len + 1 if self._whole else len(tokens.ids)
            if len(tokens.ids) > 1 and (tokens.learn is None or any(tokens.learn[1:limit])):
                return tokens
            if self._stream.epoch > began + 1:
                what = (
                    f"no chat has an answer of the assistant within seqLen ({self._seq_len} tokens)"
                    if self._whole
                    else "no document has two tokens or more"
                )
                raise UserError(self._field, what)

    def _fill(self, row: Row, room: int) -> None:
        row.inputs.extend([self._pad] * room)
        row.labels.extend([IGNORE_INDEX] * room)
        row.positions.extend(range(room))


def _labels(ids: list[int], learn: list[bool] | None) -> list[int]:
    if learn is None:
        return ids
    return [token if wanted else IGNORE_INDEX for token, wanted in zip(ids, learn, strict=True)]
