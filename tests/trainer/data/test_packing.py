"""Packing: no token is lost or repeated, a resume is exact, and rows do not depend on the number of ranks. No torch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import count

import pytest

from hftitan_trainer.data.chat import Tokens
from hftitan_trainer.data.packing import IGNORE_INDEX, Packer, Row
from hftitan_trainer.data.streams import Deck, Permutation
from hftitan_trainer.process.errors import UserError


class Words:
    """Documents whose tokens are numbers that identify document and position."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> list[int]:
        return [index * 1000 + place for place in range(self.lengths[index])]

    def where(self, index: int) -> str:
        return f"document {index}"


def packer(
    lengths: Sequence[int],
    seq: int,
    *,
    lane: int = 0,
    lanes: int = 1,
    whole: bool = False,
    infinite: bool = True,
    long: str | None = None,
    pad_end: bool = False,
) -> Packer:
    def encode(document: list[int], _where: str) -> Tokens:
        return Tokens(document, [place % 2 == 1 for place in range(len(document))] if whole else None)

    deck = Deck(Words(lengths), seed=3, lane=lane, lanes=lanes, infinite=infinite)
    return Packer(deck, encode, seq, whole=whole, long=long, pad=-1, field="spec.dataset.path", pad_end=pad_end)


def rows(made: Packer, most: int = 10_000) -> list[Row]:
    """Return up to `most` rows, fewer at the end of a finite stream."""
    found = []
    for _ in range(most):
        try:
            found.append(made.row())
        except StopIteration:
            break
    return found


@pytest.mark.parametrize("n", [*range(1, 40), 255, 256, 257, 1000])
def test_a_permutation_has_every_index_once(n: int) -> None:
    assert sorted(map(Permutation(n, seed=1, epoch=0), range(n))) == list(range(n))


def test_orders_differ_by_epoch_and_seed_and_look_random() -> None:
    orders = {tuple(map(Permutation(50, seed, epoch), range(50))) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    assert tuple(range(50)) not in orders
    # every index comes first about equally often: 200 draws of 10, expected 20 each
    first = Counter(Permutation(10, seed, 0)(0) for seed in range(200))
    assert set(first) == set(range(10))
    assert max(first.values()) < 45


@pytest.mark.parametrize(("documents", "lanes"), [(7, 1), (7, 2), (7, 3), (2, 5), (1, 4)])
def test_lanes_share_each_epoch_once_with_any_number_of_documents(documents: int, lanes: int) -> None:
    decks = [Deck(Words([1] * documents), seed=0, lane=lane, lanes=lanes) for lane in range(lanes)]
    dealt = [deck.take()[1] for _ in range(documents * 3) for deck in decks]
    for epoch in range(3):
        part = dealt[epoch * documents : (epoch + 1) * documents]
        assert sorted(part) == [f"document {i}" for i in range(documents)]


def test_labels_are_the_next_tokens_and_positions_restart() -> None:
    for row in rows(packer([5, 11, 3, 30, 2], 8), 50):
        assert len(row.inputs) == len(row.labels) == len(row.positions) == 8
        assert row.positions[0] == 0
        for place in range(8):
            assert row.labels[place] == row.inputs[place] + 1  # never the next document's first token
            if row.positions[place]:
                assert row.inputs[place] == row.inputs[place - 1] + 1
                assert row.positions[place] == row.positions[place - 1] + 1


def test_every_token_is_learnt_once_per_epoch() -> None:
    lengths = [5, 11, 3, 30, 2, 1, 0]
    labels = [label for row in rows(packer(lengths, 4, infinite=False)) for label in row.labels]
    expected = [i * 1000 + place for i, n in enumerate(lengths) for place in range(1, n)]
    assert len(labels) == len(expected) // 4 * 4
    assert not Counter(labels) - Counter(expected)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("lane", "lanes"), [(0, 1), (1, 3)])
def test_a_resumed_packer_returns_the_next_row(whole: bool, lane: int, lanes: int) -> None:
    lengths = [5, 11, 3, 30, 2, 1, 7, 7, 40, 6]
    unbroken = packer(lengths, 8, lane=lane, lanes=lanes, whole=whole)
    for _ in range(40):
        state = json.loads(json.dumps(unbroken.state()))
        resumed = packer(lengths, 8, lane=lane, lanes=lanes, whole=whole)
        resumed.restore(state)
        expected = unbroken.row()
        assert resumed.row() == expected


def test_chats_are_not_split_and_only_marked_tokens_are_learnt() -> None:
    lengths = [4, 6, 3, 9, 5]
    seen: Counter[int] = Counter()
    for row in rows(packer(lengths, 10, whole=True, infinite=False)):
        starts = [place for place, position in enumerate(row.positions) if position == 0]
        for start, end in zip(starts, [*starts[1:], 10], strict=True):
            document = row.inputs[start] // 1000
            if row.inputs[start] == -1:  # padding
                assert end == 10
                assert row.labels[start:end] == [IGNORE_INDEX] * (end - start)
                continue
            seen[document] += 1
            assert row.inputs[start:end] == [document * 1000 + place for place in range(end - start)]
            assert end - start == lengths[document] - 1
            wanted = [label if label % 2 else IGNORE_INDEX for label in (t + 1 for t in row.inputs[start:end])]
            assert row.labels[start:end] == wanted
    assert seen == Counter(range(5))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    ("long", "left"),
    [("truncate", {0: 5, 1: 9, 2: 9, 3: 3}), ("drop", {0: 5, 2: 9, 3: 3})],  # rows of 8: 9 tokens fill one
)
def test_documents_longer_than_a_row_are_truncated_or_dropped_and_counted(
    whole: bool, long: str, left: dict[int, int]
) -> None:
    made = packer([5, 30, 9, 3, 1], 8, whole=whole, infinite=False, long=long, pad_end=True)
    found = [made.row() for _ in range(6)]
    inputs = Counter(token // 1000 for row in found for token in row.inputs if token >= 0)
    assert inputs == {document: tokens - 1 for document, tokens in left.items()}
    counts = made.state()["counts"]
    assert counts == ([5, 1, 0, 1] if long == "truncate" else [5, 0, 1, 1])
    assert packer([20], 8, whole=True).row().inputs == list(range(8)), "chats are truncated by default"


def test_counts_survive_a_resume_without_counting_twice() -> None:
    unbroken = packer([5, 30, 9, 3, 1, 12], 8, long="truncate")
    for _ in range(20):
        resumed = packer([5, 30, 9, 3, 1, 12], 8, long="truncate")
        resumed.restore(json.loads(json.dumps(unbroken.state())))
        assert resumed.row() == unbroken.row()
        assert resumed.state() == unbroken.state()


def test_a_finite_stream_can_end_in_padding_after_every_token() -> None:
    made = packer([5, 11, 3], 4, infinite=False, pad_end=True)
    found = [made.row() for _ in range(9)]
    labels = [label for row in found for label in row.labels if label != IGNORE_INDEX]
    assert sorted(labels) == [i * 1000 + place for i, n in enumerate([5, 11, 3]) for place in range(1, n)]
    assert found[-1] == Row([-1] * 4, [IGNORE_INDEX] * 4, [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("lengths", "whole", "long", "words"),
    [
        ([1, 0], False, None, "spec.dataset.path: no document has at least two tokens"),
        (
            [1, 1],
            True,
            None,
            "spec.dataset.path: no chat has an assistant's answer within seqLen (8 tokens); raise seqLen",
        ),
        (
            [20, 1],
            False,
            "drop",
            "spec.dataset.path: longDocuments: drop leaves nothing to learn: no document fits in seqLen (8 tokens); "
            "raise seqLen, or use another value",
        ),
    ],
)
def test_data_with_nothing_to_learn_is_an_error_not_a_hang(
    lengths: list[int], whole: bool, long: str | None, words: str
) -> None:
    with pytest.raises(UserError) as caught:
        packer(lengths, 8, whole=whole, long=long).row()
    assert str(caught.value) == words


def test_each_of_many_lanes_finds_the_one_usable_document() -> None:
    for lane in range(64):
        assert packer([1, 1, 5, 1, 1, 1, 1], 4, lane=lane, lanes=64).row().inputs == [2000, 2001, 2002, 2003]


def test_packing_time_is_linear_in_the_length_of_a_document() -> None:
    """The time for a row depends on the row, not on what is left of the document."""
    ticks = count()

    class Ids(list[int]):
        def __getitem__(self, index):  # type: ignore[no-untyped-def]
            if isinstance(index, slice):
                for _ in range(len(range(*index.indices(len(self))))):
                    next(ticks)
                return Ids(super().__getitem__(index))
            return super().__getitem__(index)

    deck = Deck(Words([1]), seed=0, lane=0, lanes=1)
    made = Packer(deck, lambda _d, _w: Tokens(Ids(range(20_001))), 10, whole=False, pad=0, field="f")
    rows(made, 2000)
    assert next(ticks) < 20 * 20_001
