"""Extracts fenced blocks, their commands, and inline code from the documents."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from paths import ROOT

DOCUMENTS = [ROOT / "README.md", ROOT / "charts/hftitan/README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


@dataclass(frozen=True)
class Block:
    document: Path
    language: str
    text: str


def blocks(document: Path) -> list[Block]:
    """Return the fenced blocks in order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(document, language, text) for language, text in found]


def commands(document: Path) -> list[str]:
    """Return the lines of shell blocks, without comments."""
    lines = [line for block in blocks(document) if block.language == "bash" for line in block.text.splitlines()]
    return [line for line in (re.split(r"(?:^|\s)#", line)[0].strip() for line in lines) if line]


def prose(document: Path) -> list[str]:
    """Return the inline code outside of blocks."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]


def kubectl(document: Path) -> Iterator[str]:
    """Yield every kubectl command, with pipes: first from shell blocks, then from inline code."""
    yield from (command for command in commands(document) if "kubectl " in command)
    yield from (code for code in prose(document) if re.search(r"\bkubectl \w+ \S", code))
