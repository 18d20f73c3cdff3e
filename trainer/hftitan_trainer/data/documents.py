"""Reads documents from local text, JSON and Parquet files, or from hub datasets. No torch.

Local files are indexed once and read in place: a document costs 16 to 24 bytes of memory. `datasets` (with pandas and
pyarrow) is imported only for Parquet files and the hub.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from hftitan_api.models import DatasetSpec
from hftitan_trainer.process.errors import NetworkError, UserError

logger = logging.getLogger(__name__)

RECORD_SUFFIXES = (".jsonl", ".json", ".parquet")
CHECKED_BYTES = 16 * 2**20
"""A JSON-lines file up to this size is parsed completely at the start; of a larger one, only the first and last
line."""
_COMPRESSED = (".gz", ".zst", ".xz", ".bz2", ".zip", ".tar")


class Documents(Protocol):
    """A sequence of documents; an item is text, or a chat (list of messages)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...

    def where(self, index: int) -> str:
        """Return the document's place in the data, for error messages."""


class Fields:
    """Selects the field of a record that is the document."""

    def __init__(self, spec: DatasetSpec, prefix: str) -> None:
        self.chat = spec.messages_field is not None
        self.name = spec.messages_field or spec.text_field or "text"
        self.path = f"{prefix}.messagesField" if self.chat else f"{prefix}.textField"
        self.prefix = prefix

    def of(self, record: Any, where: str) -> Any:
        """Return the document of a record. Raises UserError with its place and the fields of the record."""
        if not isinstance(record, dict):
            raise UserError(self.path, f"{where}: expected an object, found {type(record).__name__}")
        if self.name not in record:
            there = ", ".join(sorted(record)) or "none"
            raise UserError(self.path, f"{where}: no field {self.name!r}; the record has: {there}")
        value = record[self.name]
        if not self.chat and not isinstance(value, str):
            raise UserError(self.path, f"{where}: field {self.name!r} is {type(value).__name__}, not text")
        return value


class TextFiles:
    """Text files split into documents of at most `chunk` bytes, at a blank line if possible, else at a line's end.

    A file up to `chunk` bytes is one document.
    """

    def __init__(self, files: Sequence[Path], chunk: int, prefix: str) -> None:
        self._files = files
        self._prefix = prefix
        self._file = array("L")
        self._start = array("Q")
        self._end = array("Q")
        for number, path in enumerate(files):
            for start, end in cut_text(path, chunk):
                self._file.append(number)
                self._start.append(start)
                self._end.append(end)

    def __len__(self) -> int:
        return len(self._start)

    def __getitem__(self, index: int) -> str:
        path = self._files[self._file[index]]
        start, end = self._start[index], self._end[index]
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(end - start)
        try:
            return data.decode("utf-8-sig" if start == 0 else "utf-8")
        except UnicodeDecodeError as error:
            hint = "; unpack it first" if path.suffix in _COMPRESSED else ""
            raise UserError(
                f"{self._prefix}.path", f"{path} is not UTF-8 text (byte {start + error.start}){hint}"
            ) from error

    def where(self, index: int) -> str:
        return f"{self._files[self._file[index]]} at byte {self._start[index]}"


def cut_text(path: Path, chunk: int) -> list[tuple[int, int]]:
    """Return the byte ranges of a text file's documents."""
    size = path.stat().st_size
    cuts = [0]
    with path.open("rb") as file:
        while size - cuts[-1] > chunk:
            # Search the last quarter of the chunk for a blank line or a line's end.
            low = cuts[-1] + chunk - chunk // 4
            file.seek(low)
            window = file.read(chunk // 4)
            for mark in (b"\n\n", b"\n"):
                found = window.rfind(mark)
                if found >= 0:
                    cut = low + found + len(mark)
                    break
            else:
                tail = len(window) - 1
                while tail > 0 and window[tail] & 0xC0 == 0x80:  # inside a UTF-8 character
                    tail -= 1
                cut = low + tail
            cuts.append(cut)
    cuts.append(size)
    return [(a, b) for a, b in itertools.pairwise(cuts) if b > a]


class JsonLines:
    """A file with one JSON object per line; blank lines are skipped."""

    def __init__(self, path: Path, fields: Fields) -> None:
        self._path = path
        self._fields = fields
        self._offset = array("Q")
        self._line = array("Q")
        check_all = path.stat().st_size <= CHECKED_BYTES
        offset = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.isspace():
                    self._offset.append(offset)
                    self._line.append(number)
                    if check_all:
                        self._parse(line, number)
                offset += len(line)
        if len(self) and not check_all:
            for index in (0, len(self) - 1):
                self[index]

    def __len__(self) -> int:
        return len(self._offset)

    def __getitem__(self, index: int) -> Any:
        with self._path.open("rb") as file:
            file.seek(self._offset[index])
            return self._parse(file.readline(), self._line[index])

    def where(self, index: int) -> str:
        return f"{self._path}:{self._line[index]}"

    def _parse(self, line: bytes, number: int) -> Any:
        where = f"{self._path}:{number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"{self._fields.prefix}.path", f"{where}: invalid JSON: {error}") from error
        return self._fields.of(record, where)


class JsonArray:
    """A .json file that is one array of objects, held in memory."""

    def __init__(self, path: Path, fields: Fields) -> None:
        try:
            records = json.loads(path.read_bytes())
        except ValueError as error:
            raise UserError(f"{fields.prefix}.path", f"{path}: invalid JSON: {error}") from error
        self._path = path
        self._values = [fields.of(record, f"{path}[{i}]") for i, record in enumerate(records)]

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: int) -> Any:
        return self._values[index]

    def where(self, index: int) -> str:
        return f"{self._path}[{index}]"


class Table:
    """A map-style dataset of the datasets library: memory-mapped columns."""

    def __init__(self, dataset: Any, name: str, fields: Fields) -> None:
        self._name = name
        self._fields = fields
        if fields.name not in dataset.column_names:
            there = ", ".join(sorted(dataset.column_names)) or "none"
            raise UserError(fields.path, f"{name} has no column {fields.name!r}; it has: {there}")
        self._dataset = dataset.select_columns([fields.name])

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        return self._fields.of(self._dataset[index], self.where(index))

    def where(self, index: int) -> str:
        return f"{self._name} row {index}"


class Joined:
    """Several sources, one after the other."""

    def __init__(self, parts: Sequence[Documents]) -> None:
        self._parts = parts
        self._starts = [0]
        for part in parts:
            self._starts.append(self._starts[-1] + len(part))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Any:
        part = bisect_right(self._starts, index) - 1
        return self._parts[part][index - self._starts[part]]

    def where(self, index: int) -> str:
        part = bisect_right(self._starts, index) - 1
        return self._parts[part].where(index - self._starts[part])


def open_path(spec: DatasetSpec, seq_len: int, prefix: str) -> Documents:
    """Return the documents at spec.path: a file, or all files of a folder sorted by name.

    If a folder has .jsonl, .json or .parquet files, only these are read (the others are model cards and licences).
    Hidden files and duplicate links are skipped. Raises UserError with the field and the file.
    """
    assert spec.path is not None
    if spec.streaming:
        raise UserError(f"{prefix}.streaming", "is only for hub datasets; files at path are read in place; remove it")
    fields = Fields(spec, prefix)
    files = list_files(Path(spec.path), prefix)
    records = [file for file in files if file.suffix.lower() in RECORD_SUFFIXES]
    parts: list[Documents] = []
    if records:
        if len(records) < len(files):
            logger.info("%s.path: skipped %d files that are not JSON or Parquet", prefix, len(files) - len(records))
        parts = [_open_records(file, fields) for file in records]
    elif fields.chat or spec.text_field is not None:
        raise UserError(fields.path, f"{files[0]} is read as plain text, which has no fields; remove it")
    else:
        # A document should be long enough to fill a row; a token has about four bytes.
        parts = [TextFiles(files, max(65_536, 8 * seq_len), prefix)]
    documents = parts[0] if len(parts) == 1 else Joined(parts)
    if len(documents) == 0:
        raise UserError(f"{prefix}.path", f"{spec.path} has no documents: its files are empty")
    return documents


def list_files(root: Path, prefix: str) -> list[Path]:
    """Return the files at a path, sorted. Raises UserError if there is none, or one is not readable."""
    if root.is_file():
        files = [root]
    elif root.is_dir():
        seen: set[str] = set()
        files = []
        # Real files before links, so that the link of a duplicate is skipped.
        found = [p for p in root.rglob("*") if not any(part.startswith(".") for part in p.relative_to(root).parts)]
        for path in sorted(found, key=lambda p: (p.is_symlink(), str(p))):
            real = os.path.realpath(path)
            if path.is_file() and real not in seen:
                seen.add(real)
                files.append(path)
        files.sort()
    else:
        raise UserError(
            f"{prefix}.path", f"{root} does not exist in this pod; mount it with spec.pod.volumes, or correct the path"
        )
    if not files:
        raise UserError(f"{prefix}.path", f"the folder {root} has no files")
    for file in files:
        if not os.access(file, os.R_OK):
            raise UserError(f"{prefix}.path", f"user {os.getuid()} cannot read {file}; change its permissions")
    return files


def _open_records(path: Path, fields: Fields) -> Documents:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return Table(_load_parquet(path, fields.prefix), str(path), fields)
    if suffix == ".json":
        with path.open("rb") as file:
            if file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[":
                return JsonArray(path, fields)
    return JsonLines(path, fields)


def _load_parquet(path: Path, prefix: str) -> Any:
    import datasets

    try:
        return datasets.Dataset.from_parquet(str(path))
    except Exception as error:
        # pyarrow and datasets have their own exception types
        raise UserError(f"{prefix}.path", f"{path} cannot be read as Parquet: {error}") from error


def load_hub(spec: DatasetSpec, prefix: str) -> Any:
    """Return the hub dataset spec.name: a datasets.Dataset, or an IterableDataset if streaming.

    Raises UserError if the dataset, its configuration or its split does not exist, NetworkError if the hub does not
    answer.
    """
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    assert spec.name is not None
    try:
        return datasets.load_dataset(spec.name, spec.config, split=spec.split, streaming=spec.streaming)
    except DatasetNotFoundError as error:
        raise UserError(
            f"{prefix}.name",
            f"the hub has no dataset {spec.name}, or it is private or gated and the token (spec.pod.hfTokenSecret) "
            f"cannot read it: {error}",
        ) from error
    except ValueError as error:
        text = str(error)
        field = "split" if "split" in text.lower() else "config" if "onfig" in text else "name"
        raise UserError(f"{prefix}.{field}", f"{spec.name}: {text}") from error
    except (ConnectionError, TimeoutError) as error:
        raise NetworkError(f"the hub cannot be reached for the dataset {spec.name}: {error}") from error
