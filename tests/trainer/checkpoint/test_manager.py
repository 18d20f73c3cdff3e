"""The checkpoint component in one process: what it loads, what it refuses, and what is left after a failed save."""

from __future__ import annotations

import errno
import json
import logging
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from hftitan_trainer.checkpoint import manifest
from hftitan_trainer.process import slim
from hftitan_trainer.process.errors import StorageError, UserError

slim.install()

from hftitan_trainer.checkpoint.manager import CompleteCheckpoints  # noqa: E402
from hftitan_trainer.parallel.randomness import RandomState  # noqa: E402

MESH = {"nodes": 1, "dpReplicate": 1, "dpShard": 1}


class Counter:
    """A component with state: the trainer, an optimizer, a loader."""

    def __init__(self) -> None:
        self.value = 0

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


class Run:
    """One process of a trainer, reduced to its state."""

    def __init__(self, folder: Path, **config: Any) -> None:
        self.model = torch.nn.Linear(8, 8, bias=False)
        self.trainer, self.data = Counter(), Counter()
        self.completed: list[int] = []
        settings = {"interval": 10, "job_uid": "u", "mesh": MESH, "keep_latest_k": 0, "last_save_model_only": False}
        self.manager = CompleteCheckpoints.Config(enable=True, **{**settings, **config}).build(
            dataloader=self.data,
            model_parts=[self.model],
            optimizers=Counter(),
            lr_schedulers=Counter(),
            states={"train_state": self.trainer},
            sd_adapter=None,
            base_folder=str(folder),
        )
        self.manager.on_complete = self.completed.append

    def save(self, step: int, *, last: bool = False) -> bool:
        with torch.no_grad():
            self.model.weight.fill_(step)
        self.trainer.value = self.data.value = step
        return self.manager.save(step, last_step=last)

    def seen(self) -> tuple[int, int, float]:
        return self.trainer.value, self.data.value, float(self.model.weight.detach().mean())


@pytest.fixture(autouse=True, scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = tmp_path_factory.mktemp("store") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (folder / "checkpoint").glob("step-*"))


def test_the_newest_complete_checkpoint_is_loaded_and_an_incomplete_one_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = Run(tmp_path, keep=9)
    assert not first.manager.load()
    assert [first.save(step) for step in (10, 15, 20, 30)] == [True, False, True, True]
    assert first.completed == [10, 20, 30]
    (tmp_path / "checkpoint/step-30/complete.json").unlink()
    second = Run(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert second.manager.load()
    assert second.seen() == (20, 20, 20.0)
    assert second.completed == [20]
    assert f"skipping the checkpoint {tmp_path}/checkpoint/step-30: it has no complete.json" in caplog.text


def shard(path: Path) -> Path:
    return next(path.glob("*.distcp"))


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def flip_size(path: Path) -> None:
    manifest = json.loads((path / "complete.json").read_text())
    manifest["files"][shard(path).name] ^= 1
    (path / "complete.json").write_text(json.dumps(manifest))


HARMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a missing shard": (lambda p: shard(p).unlink(), "its file __0_0.distcp is missing"),
    "a truncated shard": (lambda p: cut(shard(p)), "its file __0_0.distcp has "),
    "a flipped size": (flip_size, "its file __0_0.distcp has "),
    "no metadata": (lambda p: (p / ".metadata").unlink(), "its file .metadata is missing"),
    "a garbage manifest": (lambda p: (p / "complete.json").write_bytes(b"\0\xff"), "its complete.json cannot be read"),
    "a manifest cut short": (lambda p: cut(p / "complete.json"), "its complete.json cannot be read"),
    "an empty folder": (lambda p: (shutil.rmtree(p), p.mkdir()), "it has no complete.json: the save did not finish"),
    "a folder half deleted": (lambda p: (p / "complete.json").unlink(), "it has no complete.json: the save did not"),
    "a manifest that is a folder": (
        lambda p: ((p / "complete.json").unlink(), (p / "complete.json").mkdir()), "its complete.json cannot be read",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HARMS)
def test_a_damaged_checkpoint_is_skipped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    first = Run(tmp_path, keep=9)
    for step in (10, 20):
        first.save(step)
    newest = tmp_path / "checkpoint/step-20"
    harm, words = HARMS[name]
    harm(newest)
    again = Run(tmp_path, keep=9)
    with caplog.at_level(logging.WARNING):
        assert again.manager.load()
    assert again.seen() == (10, 10, 10.0)
    assert f"skipping the checkpoint {newest}: {words}" in caplog.text
    # The step is repeated, and this time its checkpoint is complete.
    assert again.save(20)
    assert manifest.examine(newest)[0] is None


def test_a_checkpoint_deleted_during_the_scan_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, keep=9)
    for step in (10, 20):
        run.save(step)
    examine = manifest.examine

    def deleted(path: Path) -> Any:
        if path.name == "step-20":
            manifest.remove(path)
        return examine(path)

    monkeypatch.setattr(manifest, "examine", deleted)
    again = Run(tmp_path)
    assert again.manager.load()
    assert again.seen() == (10, 10, 10.0)


def test_a_save_replaces_an_incomplete_checkpoint_completely(tmp_path: Path) -> None:
    torn = tmp_path / "checkpoint/step-10"
    torn.mkdir(parents=True)
    (torn / "__7_0.distcp").write_text("of another mesh")
    run = Run(tmp_path)
    assert not run.manager.load()
    assert run.save(10)
    assert sorted(p.name for p in torn.iterdir()) == [".metadata", "__0_0.distcp", "complete.json"]


@pytest.mark.parametrize(("keep", "left"), [(1, [40]), (2, [30, 40])])
def test_the_newest_checkpoints_are_kept(tmp_path: Path, keep: int, left: list[int]) -> None:
    run = Run(tmp_path, keep=keep)
    for step in (10, 20, 30, 40):
        run.save(step)
    assert steps(tmp_path) == left


def test_the_last_step_is_saved_completely_and_once(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.save(13, last=True)
    assert not run.save(13, last=True)
    again = Run(tmp_path)
    assert again.manager.load()
    assert again.seen() == (13, 13, 13.0)
    assert not again.save(13, last=True)


def test_resume_false_refuses_another_runs_checkpoints_but_not_its_own(tmp_path: Path) -> None:
    Run(tmp_path).save(10)
    with pytest.raises(UserError) as caught:
        Run(tmp_path, resume=False, job_uid="other").manager.load()
    assert str(caught.value) == (
        f"spec.checkpoint.resume: is false, but {tmp_path}/checkpoint has a checkpoint of step 10 of another run; "
        "set true to resume it, or set another spec.checkpoint.folder"
    )
    # A second attempt of the same job loads the first one's checkpoint.
    assert Run(tmp_path, resume=False).manager.load()
    assert Run(tmp_path, job_uid="other").manager.load()


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        (
            {"sequences": 8},
            {"sequences": 4},
            "spec.training.globalBatchSize: the checkpoint {} was written with 8 sequences per step, now there are 4, "
            "but the data position is saved for each sequence; set 8 (mesh and localBatchSize may change), or start a "
            "new run in another spec.checkpoint.folder",
        ),
        (
            {"ranks": 2},
            {"ranks": 1},
            "spec.mesh: the checkpoint {} was written with 2 data-parallel ranks, now there are 1, but a hub stream "
            "can only resume on the same number; keep dpReplicate x dpShard, or start a new run in",
        ),
        (
            {"ranks": 2},
            {"sequences": 2},
            "spec.dataset.streaming: the checkpoint {} was written with streaming: true; keep that value",
        ),
        (
            {"sequences": 2},
            {"ranks": 2},
            "spec.dataset.streaming: the checkpoint {} was written with streaming: false; keep that value",
        ),
        (
            None,
            {"sequences": 2},
            "spec.checkpoint.folder: the checkpoint {} is from an earlier version, which saved the data position",
        ),
    ],
)
def test_data_split_in_another_way_is_refused(
    tmp_path: Path, before: dict[str, int] | None, now: dict[str, int], words: str
) -> None:
    Run(tmp_path, data=before).save(10)
    with pytest.raises(UserError) as caught:
        Run(tmp_path, data=now).manager.load()
    assert str(caught.value).startswith(words.format(tmp_path / "checkpoint/step-10"))


def test_another_mesh_with_the_same_global_batch_is_accepted(tmp_path: Path) -> None:
    Run(tmp_path, data={"sequences": 8}).save(10)
    assert Run(tmp_path, data={"sequences": 8}, mesh={"nodes": 1, "dpReplicate": 2, "dpShard": 2}).manager.load()


def drawn() -> list[float]:
    return torch.rand(4).tolist()


@pytest.mark.parametrize("mode", ["disabled", "async"])
def test_random_numbers_resume_from_the_saved_state(tmp_path: Path, mode: str) -> None:
    run = Run(tmp_path, async_mode=mode)
    run.manager.load()
    drawn()
    run.save(10)
    after = drawn()
    run.manager.maybe_wait_for_saving()
    assert drawn() != after
    again = Run(tmp_path)
    again.manager.load()
    assert drawn() == after


def test_random_numbers_restart_from_seed_and_step_on_another_mesh(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def start(folder: str, **config: Any) -> list[float]:
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="hftitan_trainer"):
            Run(tmp_path / folder, **config).manager.load()
        return drawn()

    fresh = start("run")
    assert start("run") == fresh != start("run", seed=1)
    assert "random numbers" not in caplog.text
    Run(tmp_path / "run").save(10)
    elsewhere = start("run", mesh={**MESH, "dpShard": 2})
    assert "step 10 was saved on another mesh" in caplog.text
    assert start("run", mesh={**MESH, "dpShard": 4}) == elsewhere != fresh
    assert start("run", mesh={**MESH, "dpShard": 2}, seed=1) != elsewhere
    # The number of nodes does not matter.
    start("run", mesh={**MESH, "nodes": 2})
    assert "random numbers" not in caplog.text


def test_a_checkpoint_of_an_earlier_version_without_random_numbers_is_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path)
    del run.manager.states["random"]
    run.save(10)
    path = tmp_path / "checkpoint/step-10/complete.json"
    document = json.loads(path.read_text())
    del document["random"]
    path.write_text(json.dumps(document))
    again = Run(tmp_path)
    with caplog.at_level(logging.INFO, logger="hftitan_trainer"):
        assert again.manager.load()
    assert again.seen() == (10, 10, 10.0)
    assert "(or by an earlier version): the random numbers of dropout restart from" in caplog.text


def test_the_generators_of_gpu_and_cpu_are_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Needs no GPU: torch's functions are patched."""
    state = RandomState(seed=0, mesh={"device": "gpu"}, rank=3)
    loaded = []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: torch.tensor([7], dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "set_rng_state", loaded.append)
    saved = state.state_dict()
    assert list(saved) == ["rank3"]
    after = drawn()
    state.load_state_dict(saved)
    assert loaded == [torch.tensor([7], dtype=torch.uint8)]
    assert drawn() == after


@pytest.fixture
def small_disk() -> Iterator[Callable[[int], None]]:
    """Limits the size of files of this process: longer writes raise OSError, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("mode", ["disabled", "async"])
def test_a_full_disk_fails_the_save_and_keeps_older_checkpoints(
    tmp_path: Path, small_disk: Callable[[int], None], mode: str
) -> None:
    run = Run(tmp_path, keep=1, async_mode=mode)
    run.save(10)
    run.manager.maybe_wait_for_saving()
    small_disk(512)
    with pytest.raises(StorageError, match="step-20 failed"):  # noqa: PT012 (an async save fails in either line)
        run.save(20)
        run.manager.maybe_wait_for_saving()
    small_disk(2**30)
    assert steps(tmp_path) == [10]
    again = Run(tmp_path)
    again.manager.load()
    assert again.seen() == (10, 10, 10.0)


def test_a_full_disk_at_the_manifest_fails_the_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run = Run(tmp_path)
    run.save(10)
    monkeypatch.setattr("hftitan_trainer.checkpoint.manifest.seal", full)
    with pytest.raises(StorageError, match=r"step-20 failed: .*No space left on device"):
        run.save(20)
    assert steps(tmp_path) == [10]


def test_an_asynchronous_save_is_complete_once_it_is_written(tmp_path: Path) -> None:
    run = Run(tmp_path, async_mode="async", keep=1)
    for step in (10, 20):
        assert run.save(step)
    run.manager.maybe_wait_for_saving()
    assert run.completed == [10, 20]
    assert steps(tmp_path) == [20]
    again = Run(tmp_path)
    again.manager.load()
    assert again.seen() == (20, 20, 20.0)


def test_a_checkpoint_of_right_size_and_wrong_content_is_a_storage_error(tmp_path: Path) -> None:
    Run(tmp_path).save(10)
    path = tmp_path / "checkpoint/step-10/.metadata"
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(StorageError, match=r"loading .*step-10 failed"):
        Run(tmp_path).manager.load()


def test_nodes_that_do_not_share_the_folder_are_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = {**MESH, "nodes": 2}
    assert not Run(tmp_path, mesh=mesh).manager.load()
    monkeypatch.setattr("hftitan_trainer.checkpoint.manager._reads", lambda _path, _text: False)
    with pytest.raises(UserError, match=r"spec\.checkpoint\.volume: ranks 0 do not see the files that rank 0 writes"):
        Run(tmp_path, mesh=mesh).manager.load()
