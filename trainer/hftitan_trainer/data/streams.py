"""An endless stream of documents for each lane of a job, with a small state. No torch.

A lane is a row of the global batch: row p of every optimizer step comes from lane p and is packed from that lane's
documents. All lanes share one endless order: epoch after epoch, each shuffled differently. Document g of this order
goes to lane g modulo the number of lanes. So every epoch has each document once, even if there are few. The rows of
step s depend only on s, not on which rank has which lanes. A rank tokenizes only its own share.
"""

from __future__ import annotations

from typing import Any, Protocol

from hftitan_trainer.data.documents import Documents, Fields
from hftitan_trainer.process.errors import NetworkError, UserError

_MASK64 = (1 << 64) - 1
_ROUNDS = 6


def _mix(value: int) -> int:
    """Mix 64 bits into 64 bits: splitmix64's finaliser."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


class Permutation:
    """A pseudo-random order of 0..n-1, computed for each index, so it needs no memory.

    A Feistel network over the smallest even number of bits that holds n, repeated until the result is below n.
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
    tries: int
    """A lane has nothing to learn if it finds nothing in this many documents and two epochs."""

    def take(self) -> tuple[Any, str]:
        """Return the next document and its place in the data. Raises StopIteration at the end of a finite stream."""

    def state(self) -> Any:
        """Return JSON values for `restore`."""

    def restore(self, state: Any) -> None: ...


class Deck:
    """One lane's share of shuffled, indexed documents."""

    def __init__(self, documents: Documents, *, seed: int, lane: int, lanes: int, infinite: bool = True) -> None:
        self._documents = documents
        self._seed = seed
        self._lane = lane
        self._lanes = lanes
        self._infinite = infinite
        self._taken = 0
        self.epoch = 0
        # With many lanes, a lane sees different documents in each epoch. If one in 1000 can be used, this many include
        # it.
        self.tries = 20 * min(len(documents), 1000)
        self._order = Permutation(len(documents), seed, 0)

    def take(self) -> tuple[Any, str]:
        epoch, place = divmod(self._lane + self._taken * self._lanes, len(self._documents))
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
        self.epoch = -1  # the next take computes the order


class HubStream:
    """One lane's share of a datasets.IterableDataset, in the order of the hub.

    Each lane reads the whole stream or some of its files. So a stream has one lane for each data-parallel rank, not for
    each row, and cannot be split again over another number of ranks.
    """

    def __init__(
        self, dataset: Any, name: str, fields: Fields, *, lane: int, lanes: int, infinite: bool = True
    ) -> None:
        from datasets.distributed import split_dataset_by_node

        self._dataset = split_dataset_by_node(dataset, lane, lanes)
        self._lane = lane
        self._name = name
        self._fields = fields
        self._infinite = infinite
        self._items: Any = None
        self._index = 0
        self._restored: Any = None
        """State to resume the dataset from; the dataset has a state of its own only once it is read."""
        self.epoch = 0
        self.tries = 0  # the same documents in each epoch

    def take(self) -> tuple[Any, str]:
        if self._items is None:
            self._items = iter(self._dataset)
        self._restored = None
        while True:
            record = self._next()
            if record is not None:
                break
            if not self._infinite:
                raise StopIteration
            if self._index == 0:
                raise UserError(f"{self._fields.prefix}.name", f"{self._name} has no records for rank {self._lane}")
            self.epoch += 1
            self._index = 0
            self._dataset.set_epoch(self.epoch)
            self._items = iter(self._dataset)
        self._index += 1
        where = f"{self._name} record {self._index - 1} of rank {self._lane}"
        return self._fields.of(record, where), where

    def _next(self) -> Any:
        """Return the next record, or None at the end. Many libraries can raise here, each with its own errors."""
        after = f"{self._name} after record {self._index - 1} of rank {self._lane}" if self._index else self._name
        try:
            return next(self._items, None)
        except OSError as error:
            raise NetworkError(f"the hub cannot be read for {after}: {error}") from error
        except Exception as error:
            # json, pyarrow and datasets have their own exception types
            path = f"{self._fields.prefix}.name"
            raise UserError(path, f"{after} cannot be read: {type(error).__name__}: {error}") from error

    def state(self) -> Any:
        dataset = self._dataset.state_dict() if self._restored is None else self._restored
        return {"epoch": self.epoch, "index": self._index, "dataset": dataset}

    def restore(self, state: Any) -> None:
        self.epoch, self._index = state["epoch"], state["index"]
        self._dataset.set_epoch(self.epoch)
        self._dataset.load_state_dict(state["dataset"])
        self._restored, self._items = state["dataset"], None
