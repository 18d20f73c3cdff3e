"""Documents from local files: which files are read, in which order, and the error messages. No torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hftitan_api.models import DatasetSpec
from hftitan_trainer.data.documents import cut_text, open_path
from hftitan_trainer.process.errors import UserError


def documents(path: Path, seq_len: int = 16, **spec: object) -> list[object]:
    opened = open_path(DatasetSpec(path=str(path), **spec), seq_len, "spec.dataset")
    return [opened[i] for i in range(len(opened))]


def refusal(path: Path, **spec: object) -> str:
    with pytest.raises(UserError) as caught:
        documents(path, **spec)
    return str(caught.value)


def test_text_files_of_a_folder_are_read_in_order_of_name(tmp_path: Path) -> None:
    for name, text in {"b.txt": "two", "a": "one", "sub/c.md": "three", ".git/x": "no", "empty": ""}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "0-link").symlink_to(tmp_path / "a")
    assert documents(tmp_path) == ["one", "two", "three"]


def test_a_folder_with_records_ignores_other_files(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("a card")
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\n')
    (tmp_path / "a.json").write_text(' [{"text": "zero"}]')
    (tmp_path / "c.json").write_text('{"text": "three"}\n{"text": "four"}')
    assert documents(tmp_path) == ["zero", "one", "two", "three", "four"]


def test_parquet_and_other_fields_are_read(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    chat = [{"role": "user", "content": "hi"}]
    pq.write_table(pa.table({"body": ["x", "y"], "talk": [chat, chat]}), tmp_path / "d.parquet")
    assert documents(tmp_path / "d.parquet", text_field="body") == ["x", "y"]
    assert documents(tmp_path / "d.parquet", messages_field="talk") == [chat, chat]
    assert refusal(tmp_path / "d.parquet").endswith("has no column 'text'; it has: body, talk")


@pytest.mark.parametrize("text", ["aaaa\n" * 4000, ("para graph\n" * 30 + "\n") * 40, "é" * 10_000, "\n" * 9000])
def test_long_text_is_split_without_loss_within_the_limit(tmp_path: Path, text: str) -> None:
    path = tmp_path / "long.txt"
    path.write_text(text)
    ranges = cut_text(path, 1024)
    data = path.read_bytes()
    assert b"".join(data[a:b] for a, b in ranges) == data
    assert max(b - a for a, b in ranges) <= 1024
    assert min(b - a for a, b in ranges[:-1]) >= 768
    assert "".join(data[a:b].decode() for a, b in ranges) == text


def test_text_is_split_at_a_blank_line_first(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text("x" * 900 + "\n\n" + "y\n" * 400)
    assert cut_text(path, 1024)[0] == (0, 902)


def test_documents_are_longer_for_longer_rows(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("line of text\n" * 20_000)
    assert len(documents(tmp_path, seq_len=16)) == 4
    assert len(documents(tmp_path, seq_len=100_000)) == 1


@pytest.mark.parametrize(
    ("name", "content", "spec", "words"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": \n', {}, "spec.dataset.path: {}/a.jsonl:2: invalid JSON: Expecting value"),
        (
            "a.jsonl",
            '{"body": "x", "id": 1}\n',
            {},
            "spec.dataset.textField: {}/a.jsonl:1: no field 'text'; the record has: body, id",
        ),
        ("a.jsonl", '{"text": 5}', {}, "spec.dataset.textField: {}/a.jsonl:1: field 'text' is int, not text"),
        ("a.jsonl", '["x"]', {}, "spec.dataset.textField: {}/a.jsonl:1: expected an object, found list"),
        (
            "a.jsonl",
            '{"text": "x"}',
            {"messages_field": "m"},
            "spec.dataset.messagesField: {}/a.jsonl:1: no field 'm'; the record has: text",
        ),
        ("a.json", "[1, 2", {}, "spec.dataset.path: {}/a.json: invalid JSON"),
        ("a.json", '[{"text": 1}]', {}, "spec.dataset.textField: {}/a.json[0]: field 'text' is int, not text"),
        ("a.parquet", "no", {}, "spec.dataset.path: {}/a.parquet cannot be read as Parquet"),
        ("a.jsonl", "\n\n", {}, "spec.dataset.path: {} has no documents: its files are empty"),
        ("a.txt", "x", {"text_field": "t"}, "spec.dataset.textField: {}/a.txt is read as plain text, which has no"),
        ("a.txt", "x", {"streaming": True}, "spec.dataset.streaming: is only for hub datasets; files"),
    ],
)
def test_errors_name_field_file_and_line(
    tmp_path: Path, name: str, content: str, spec: dict[str, object], words: str
) -> None:
    (tmp_path / name).write_text(content)
    assert refusal(tmp_path, **spec).startswith(words.format(tmp_path))


def test_an_invalid_last_line_of_a_large_file_is_found_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hftitan_trainer.data.documents.CHECKED_BYTES", 10)
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "x"}) + '\n{"text": "cut o')
    with pytest.raises(UserError, match=r"a\.jsonl:2: invalid JSON"):
        open_path(DatasetSpec(path=str(path)), 16, "spec.dataset")


def test_missing_empty_and_binary_files_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "gone").startswith(f"spec.dataset.path: {tmp_path}/gone does not exist in this pod")
    assert refusal(tmp_path) == f"spec.dataset.path: the folder {tmp_path} has no files"
    (tmp_path / "x.gz").write_bytes(b"ok\x8b\x00")
    assert refusal(tmp_path) == f"spec.dataset.path: {tmp_path}/x.gz is not UTF-8 text (byte 2); unpack it first"


def test_text_and_json_lines_need_neither_torch_nor_datasets(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    code = (
        "import sys; from hftitan_api.models import DatasetSpec; from hftitan_trainer.data import documents, packing;"
        f"documents.open_path(DatasetSpec(path={str(tmp_path)!r}), 16, 'spec.dataset')[0];"
        "print([m for m in ('torch', 'datasets', 'pandas', 'transformers') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
