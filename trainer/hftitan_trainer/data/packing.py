"""Packs documents into rows of exactly seq_len tokens; resumable at any token. No torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from hftitan_trainer.data.chat import Tokens
from hftitan_trainer.data.streams import Stream
from hftitan_trainer.process.errors import UserError

IGNORE_INDEX = -100
"""Label of a token without loss; the same as in torchtitan.components.loss."""


@dataclass(frozen=True, slots=True)
class Row:
    """seq_len tokens: inputs, labels (the next token or IGNORE_INDEX), and positions that restart at 0 with each
    document and each row."""

    inputs: list[int]
    labels: list[int]
    positions: list[int]


@dataclass(slots=True)
class Counts:
    """Counts of documents."""

    documents: int = 0
    """All documents read."""
    truncated: int = 0
    too_long: int = 0
    """Dropped because of their length."""
    empty: int = 0
    """Dropped because they have nothing to learn."""


class Packer:
    """Fills rows with documents.

    With `whole`, documents (chats) are never split: one that does not fit starts the next row, and the rest of the row
    is padding. Otherwise a document continues in the next row. `long` is what happens to a document longer than a row:
    see DatasetSpec.long_documents.
    """

    def __init__(
        self,
        stream: Stream,
        encode: Callable[[Any, str], Tokens],
        seq_len: int,
        *,
        whole: bool,
        long: str | None = None,
        pad: int,
        field: str,
        pad_end: bool = False,
    ) -> None:
        self._stream = stream
        self._encode = encode
        self._seq_len = seq_len
        self._whole = whole
        self._long = long or ("truncate" if whole else "chunk")
        self._counts = Counts()
        self._pad = pad
        self._field = field
        self._pad_end = pad_end
        self._pending: Tokens | None = None
        self._before: dict[str, Any] = {}
        """The state before the pending document."""
        self._start = 0
        """Where the next row starts in the pending document."""

    def row(self) -> Row:
        """Return the next row.

        Raises UserError if a whole epoch has nothing to learn. At the end of a finite stream, raises StopIteration (an
        unfinished row of text is dropped, one of chats is padded), or with `pad_end` returns endless rows of padding.
        """
        row = Row([], [], [])
        while (room := self._seq_len - len(row.inputs)) > 0:
            if self._pending is None:
                try:
                    self._pending = self._next_document()
                except StopIteration:
                    if not (self._pad_end or (self._whole and row.inputs)):
                        raise
                    self._fill(row, room)
                    break
            ids, learn, start = self._pending.ids, self._pending.learn, self._start
            left = len(ids) - 1 - start
            if self._whole and left > room and row.inputs:
                self._fill(row, room)
                break
            size = min(room, left)  # a whole document fits here
            shifted = slice(start + 1, start + size + 1)
            row.inputs.extend(ids[start : start + size])
            row.labels.extend(_labels(ids[shifted], learn and learn[shifted]))
            row.positions.extend(range(size))
            if left > size:
                self._start += size
            else:
                self._pending, self._start = None, 0
        return row

    def state(self) -> dict[str, Any]:
        """Return small JSON values. Call it only between rows. A pending document is read again from the stream."""
        return {**(self._between() if self._pending is None else self._before), "start": self._start}

    def restore(self, state: dict[str, Any]) -> None:
        self._stream.restore(state["stream"])
        self._counts = Counts(*state["counts"])
        self._pending, self._start = None, state["start"]

    def _between(self) -> dict[str, Any]:
        return {"stream": self._stream.state(), "counts": list(astuple(self._counts))}

    def _next_document(self) -> Tokens:
        """Return the next document that has something to learn."""
        began: int | None = None
        limit = self._seq_len + 1
        for tried in itertools.count(1):
            self._before = self._between()
            document, where = self._stream.take()
            began = self._stream.epoch if began is None else began
            tokens = self._encode(document, where)
            self._counts.documents += 1
            long = len(tokens.ids) > limit
            if long and self._long == "drop":
                self._counts.too_long += 1
            else:
                if long and self._long == "truncate":
                    tokens = Tokens(tokens.ids[:limit], tokens.learn and tokens.learn[:limit])
                if len(tokens.ids) > 1 and (tokens.learn is None or any(tokens.learn[1:])):
                    self._counts.truncated += long and self._long == "truncate"
                    return tokens
                self._counts.empty += 1
            if self._stream.epoch > began + 1 and tried >= self._stream.tries:
                raise UserError(self._field, self._nothing())
        raise AssertionError

    def _nothing(self) -> str:
        if self._long == "drop":
            return (
                f"longDocuments: drop leaves nothing to learn: no document fits in seqLen ({self._seq_len} tokens); "
                "raise seqLen, or use another value"
            )
        if self._whole:
            return f"no chat has an assistant's answer within seqLen ({self._seq_len} tokens); raise seqLen"
        return "no document has at least two tokens"

    def _fill(self, row: Row, room: int) -> None:
        row.inputs.extend([self._pad] * room)
        row.labels.extend([IGNORE_INDEX] * room)
        row.positions.extend(range(room))


def _labels(ids: Sequence[int], learn: list[bool] | None) -> Sequence[int]:
    if learn is None:
        return ids
    return [token if wanted else IGNORE_INDEX for token, wanted in zip(ids, learn, strict=True)]
