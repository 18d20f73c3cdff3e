"""Complete, incomplete and partly deleted checkpoints: which are valid and which are deleted. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hftitan_trainer.checkpoint import manifest


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    def checkpoint(step: int, *, sealed: bool = True) -> Path:
        path = tmp_path / f"step-{step}"
        (path / "sub").mkdir(parents=True)
        (path / "__0_0.distcp").write_bytes(b"x" * 100)
        (path / "sub" / "more").write_bytes(b"y" * 7)
        (path / ".metadata").write_bytes(b"m" * 10)
        if sealed:
            manifest.seal(path, {"__0_0.distcp": 90, ".metadata": 1}, step=step, jobUid="u")
        return path

    return checkpoint


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(3)


def test_a_sealed_checkpoint_is_complete_and_has_its_info(make: Callable[..., Path]) -> None:
    path = make(5)
    problem, info = manifest.examine(path)
    assert problem is None
    assert info == {
        "format": 1,
        "step": 5,
        "jobUid": "u",
        "files": {".metadata": 10, "__0_0.distcp": 100, "sub/more": 7},
    }
    assert {p.name for p in path.iterdir()} == {".metadata", "__0_0.distcp", "sub", "complete.json"}


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (lambda p: (p / "complete.json").unlink(), "it has no complete.json: the save did not finish"),
        (lambda p: cut(p / "complete.json"), "its complete.json cannot be read: "),
        (lambda p: (p / "complete.json").write_text("[]"), "its complete.json cannot be read: "),
        (lambda p: (p / "complete.json").write_text('{"files": {}}'), "its complete.json has format None, not 1"),
        (lambda p: (p / "__0_0.distcp").unlink(), "its file __0_0.distcp is missing"),
        (lambda p: cut(p / "__0_0.distcp"), "its file __0_0.distcp has 3 of 100 bytes"),
        (lambda p: cut(p / ".metadata"), "its file .metadata has 3 of 10 bytes"),
        (lambda p: (p / "sub" / "more").write_bytes(b"y" * 8), "its file sub/more has 8 of 7 bytes"),
    ],
)
def test_the_problem_of_an_incomplete_checkpoint_is_named(
    make: Callable[..., Path], harm: Callable[[Path], object], problem: str
) -> None:
    path = make(5)
    harm(path)
    found = manifest.examine(path)[0]
    assert found is not None
    assert found.startswith(problem)


def test_a_save_with_missing_or_short_files_is_not_sealed(make: Callable[..., Path]) -> None:
    path = make(5, sealed=False)
    with pytest.raises(FileNotFoundError):
        manifest.seal(path, {"__7_0.distcp": 1})
    with pytest.raises(FileNotFoundError, match="has 100 bytes, 200 were written"):
        manifest.seal(path, {"__0_0.distcp": 200})
    assert manifest.examine(path)[0] == "it has no complete.json: the save did not finish"


def test_a_scan_returns_the_newest_first_and_ignores_other_entries(make: Callable[..., Path], tmp_path: Path) -> None:
    for step in (9, 10, 100):
        make(step)
    (tmp_path / "step-7").write_text("a file")
    (tmp_path / "step-8.bak").mkdir()
    (tmp_path / "notes").mkdir()
    assert [c.step for c in manifest.scan(tmp_path)] == [100, 10, 9]
    assert manifest.scan(tmp_path / "nowhere") == []


def test_a_removal_deletes_the_manifest_first(make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(5)

    def killed(_path: Path, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        manifest.remove(path)
    assert (path / "__0_0.distcp").exists()
    assert manifest.examine(path)[0] is not None


@pytest.mark.parametrize(
    ("complete", "torn", "keep", "left"),
    [
        ([10, 20, 30], [], 2, [20, 30]),
        ([10, 20, 30], [], 1, [30]),
        ([10, 20, 30], [], 5, [10, 20, 30]),
        # An incomplete one is deleted once a complete one is newer. A newer incomplete one may be a save in progress.
        ([10, 20], [15], 2, [10, 20]),
        ([10, 20], [30], 2, [10, 20, 30]),
        ([10, 20], [30], 1, [20, 30]),
        # Without a complete checkpoint nothing is deleted.
        ([], [10, 20], 1, [10, 20]),
    ],
)
def test_pruning_keeps_the_newest_complete_checkpoints(
    make: Callable[..., Path], tmp_path: Path, complete: list[int], torn: list[int], keep: int, left: list[int]
) -> None:
    for step in complete:
        make(step)
    for step in torn:
        make(step, sealed=False)
    gone = manifest.prune(tmp_path, keep)
    assert sorted(int(p.name[5:]) for p in tmp_path.iterdir()) == left
    assert {int(p.name[5:]) for p in gone} == {*complete, *torn} - set(left)


def test_a_partly_written_manifest_is_ignored(make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(5, sealed=False)

    def full(_value: object, file: object) -> None:
        file.write('{"format": 1, "fil')  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dump", full)
    with pytest.raises(OSError, match="No space left"):
        manifest.seal(path, {})
    monkeypatch.undo()
    assert manifest.examine(path)[0] == "it has no complete.json: the save did not finish"
