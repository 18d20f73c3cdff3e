"""The checkpoint component: torchtitan's DCP checkpoints; incomplete ones are ignored."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException
from torchtitan.components.checkpointer import CheckpointManager
from torchtitan.components.checkpointer.base import MODEL

from hftitan_api.wire import TrainerSpec
from hftitan_trainer.checkpoint import manifest
from hftitan_trainer.checkpoint.load_plan import HeadFromEmbedding
from hftitan_trainer.data.layout import check_layout, layout
from hftitan_trainer.parallel import randomness
from hftitan_trainer.process.errors import StorageError, TrainerError, UserError
from hftitan_trainer.process.report import classify, describe

logger = logging.getLogger(__name__)

FOLDER = "checkpoint"
NEVER = 2**31 - 1
FAILURES = (Exception, CheckpointException)
"""What a save or load can raise: DCP's own exception is a BaseException, not an Exception."""
_VISIBLE_WITHIN_SECONDS = 10.0
"""How long a shared file system may take to show one node's file to another."""


class CompleteCheckpoints(CheckpointManager):
    """Saves to <dump folder>/checkpoint/step-N, loads the newest complete one, keeps the newest `keep`.

    Rank 0 decides and manages the folder, and broadcasts its decisions, so that all ranks load the same step.
    `on_complete(step)` is called when a checkpoint is complete: on every rank, or only on rank 0 for asynchronous
    saves.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(CheckpointManager.Config):
        keep: int = 2
        resume: bool = True
        job_uid: str = ""
        attempt: int = 1
        mesh: dict[str, Any] = field(default_factory=dict)
        """MeshDegrees, as recorded in the manifest."""
        seed: int = 0
        data: dict[str, int] = field(default_factory=dict)
        """How the data is split (data/layout.py). Recorded too, since a data position fits only the same split."""

    def __init__(self, config: Config, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self._config = config
        self._random = randomness.RandomState(config.seed, config.mesh, dist.get_rank())
        self.states[randomness.KEY] = self._random
        self._path = Path(self.folder)
        self._saved_step = -1
        self._sealed = threading.Event()
        self._seal_error: OSError | None = None
        self.on_complete: Callable[[int], None] = lambda _step: None

    # --- loading ----------------------------------------------------------------------------------------------

    def _load(self, step: int = -1) -> bool:
        """Load the newest complete checkpoint (or the one of `step`), else the initial weights, else nothing.

        Raises UserError if a checkpoint may not be resumed, if it was written with the data split differently, or if
        the nodes do not share the folder. Raises StorageError if reading fails.
        """
        self._check_shared()
        chosen, same_places = self._from_rank_zero(lambda: self._choose(step))
        self._chosen = chosen
        self.exclude_from_loading = [] if same_places else [randomness.KEY]
        try:
            loaded = super()._load(chosen)
        except TrainerError:
            raise
        except FAILURES as error:
            if chosen < 0 or classify(error)[0] == "NetworkError":
                raise
            raise StorageError(f"loading {self._path / f'step-{chosen}'} failed: {describe(error)}") from error
        if not same_places:
            self._random.restart(max(chosen, 0))
        if chosen >= 0:
            self._saved_step = chosen
            self.on_complete(chosen)
        return loaded

    def dcp_load(self, state_dict: dict[str, Any], checkpoint_id: str, from_hf: bool, from_quantized: bool) -> None:
        """Load as upstream does, but with our planner for checkpoints, since upstream accepts none."""
        if from_hf:
            super().dcp_load(state_dict, checkpoint_id, from_hf, from_quantized)
            return
        dcp.load(state_dict, checkpoint_id=checkpoint_id, planner=HeadFromEmbedding())
        self.states[MODEL].load_state_dict(state_dict)

    def _find_load_step(self, folder: str = "") -> int:
        """Return the step that rank 0 chose. Upstream looks for the newest step on every rank."""
        return self._chosen

    def _choose(self, step: int) -> tuple[int, bool]:
        """Return the step to load (or -1), and whether its random numbers fit this mesh. Runs only on rank 0."""
        found = manifest.scan(self._path)
        for checkpoint in found:
            if checkpoint.problem is None:
                break
            logger.warning("skipping the checkpoint %s: %s", checkpoint.path, checkpoint.problem)
        complete = [c for c in found if c.problem is None and step in (-1, c.step)]
        if not complete:
            return -1, False
        newest = complete[0]
        own = newest.info.get("jobUid") == self._config.job_uid
        if not self._config.resume and not own:
            raise UserError(
                "spec.checkpoint.resume",
                f"is false, but {self._path} has a checkpoint of step {newest.step} of another run; set true to "
                "resume it, or set another spec.checkpoint.folder",
            )
        check_layout(newest.path, newest.info.get("data"), self._config.data)
        same_places = newest.info.get(randomness.KEY) == randomness.places(self._config.mesh)
        if not same_places:
            logger.info(
                "step %d was saved on another mesh (or by an earlier version): "
                "the random numbers of dropout restart from spec.training.seed and the step",
                newest.step,
            )
        return newest.step, same_places

    def _check_shared(self) -> None:
        """Check that all nodes share one folder, before hours of steps are saved to several."""
        if self._config.mesh.get("nodes", 1) < 2:
            return
        probe = self._path / ".shared"
        token = f"{self._config.job_uid}/{self._config.attempt}/{time.time_ns()}"

        def write() -> str:
            self._path.mkdir(parents=True, exist_ok=True)
            probe.write_text(token)
            return token

        token = self._from_rank_zero(write)
        seen = os.environ.get("LOCAL_RANK", "0") != "0" or _reads(probe, token)
        everybody: list[bool] = [True] * dist.get_world_size()
        dist.all_gather_object(everybody, seen)
        blind = [rank for rank, sees in enumerate(everybody) if not sees]
        if blind:
            raise UserError(
                "spec.checkpoint.volume",
                f"ranks {', '.join(map(str, blind[:8]))} do not see the files that rank 0 writes to {self._path}; "
                "several nodes need one volume with access mode ReadWriteMany",
            )

    # --- saving -----------------------------------------------------------------------------------------------

    def _save(self, curr_step: int, last_step: bool = False) -> bool:
        """Save if it is due. Raises StorageError on every rank if one fails; older checkpoints are not changed."""
        if not self._should_save(curr_step, last_step) or curr_step == self._saved_step:
            return False
        self.maybe_wait_for_saving()
        path = self._path / f"step-{curr_step}"
        # Files of an interrupted save, perhaps on another mesh.
        self._from_rank_zero(lambda: manifest.remove(path))
        self._sealed.clear()
        try:
            super()._save(curr_step, last_step)
        except FAILURES as error:
            raise self._failed(path, error) from error
        self._saved_step = curr_step
        if self.save_future is not None:
            if dist.get_rank() == 0:
                self.save_future.add_done_callback(lambda future: self._seal_later(curr_step, path, future.exception()))
            return True
        try:
            self._from_rank_zero(lambda: self._seal(curr_step, path))
        except TrainerError as error:
            raise self._failed(path, error) from error
        self.on_complete(curr_step)
        return True

    def _wait_for_saving(self) -> None:
        """Wait until the asynchronous save is written, sealed, and its predecessors are pruned."""
        try:
            super()._wait_for_saving()
        except FAILURES as error:
            raise self._failed(self._path / f"step-{self._saved_step}", error) from error
        if dist.get_rank() == 0:
            self._sealed.wait()
            if self._seal_error is not None:
                raise StorageError(f"completing the checkpoint failed: {self._seal_error}") from self._seal_error

    def _seal(self, step: int, path: Path) -> None:
        """Write the manifest and prune. Runs only on rank 0."""
        config = self._config
        deadline = time.monotonic() + (_VISIBLE_WITHIN_SECONDS if config.mesh.get("nodes", 1) > 1 else 0.0)
        while True:
            try:
                manifest.seal(
                    path,
                    _extents(path),
                    step=step,
                    time=round(time.time(), 3),
                    jobUid=config.job_uid,
                    attempt=config.attempt,
                    mesh=config.mesh,
                    data=config.data,
                    **{randomness.KEY: randomness.places(config.mesh)},
                )
                break
            except FileNotFoundError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        for gone in manifest.prune(self._path, config.keep):
            logger.debug("deleted the checkpoint %s", gone)

    def _seal_later(self, step: int, path: Path, error: BaseException | None) -> None:
        """Seal an asynchronous save, in the thread that finished it."""
        self._seal_error = None
        if error is None:
            try:
                self._seal(step, path)
                self.on_complete(step)
            except OSError as seal_error:
                self._seal_error = seal_error
        self._sealed.set()

    def _failed(self, path: Path, error: BaseException) -> BaseException:
        """Return the error to raise for a failed save, and delete the incomplete checkpoint."""
        if classify(error)[0] == "NetworkError":
            return error
        if dist.get_rank() == 0:
            manifest.remove(path)
        return StorageError(f"saving {path} failed: {describe(error)}")

    def _from_rank_zero(self, decide: Callable[[], Any]) -> Any:
        """Return on all ranks what `decide` returns on rank 0. Its TrainerError and OSError are raised on all ranks
        too."""
        answer: list[Any] = [None, None]
        if dist.get_rank() == 0:
            try:
                answer[0] = decide()
            except UserError as error:
                answer[1] = (error.path, error.message)
            except (OSError, TrainerError) as error:
                answer[1] = describe(error)
        if dist.get_world_size() > 1:
            dist.broadcast_object_list(answer, src=0)
        if isinstance(answer[1], tuple):
            raise UserError(*answer[1])
        if answer[1] is not None:
            raise StorageError(answer[1])
        return answer[0]


def checkpoint_config(spec: TrainerSpec, *, initial_load_path: str | None = None) -> CompleteCheckpoints.Config:
    """Return torchtitan's Trainer.Config.checkpoint; `initial_load_path` is a folder of Hugging Face safetensors."""
    checkpoint = spec.checkpoint
    return CompleteCheckpoints.Config(
        enable=True,
        folder=FOLDER,
        interval=checkpoint.interval or NEVER,
        keep=checkpoint.keep,
        keep_latest_k=0,  # upstream would count incomplete ones; see manifest.prune
        resume=checkpoint.resume,
        async_mode=checkpoint.async_mode,
        job_uid=spec.job_uid,
        attempt=int(os.environ.get("HFTITAN_ATTEMPT") or 1),
        mesh=spec.mesh.to_dict(),
        seed=spec.training.seed,
        data=layout(spec),
        initial_load_path=initial_load_path,
        initial_load_in_hf=initial_load_path is not None,
        initial_load_model_only=initial_load_path is not None,
        last_save_model_only=False,
        last_save_in_hf=False,
    )


def _extents(path: Path) -> dict[str, int]:
    """Return the files of a DCP checkpoint and the bytes used of each, from its metadata."""
    ends: dict[str, int] = {".metadata": 1}
    for info in FileSystemReader(path).read_metadata().storage_data.values():
        ends[info.relative_path] = max(ends.get(info.relative_path, 0), info.offset + info.length)
    return ends


def _reads(path: Path, text: str) -> bool:
    """Wait until the file at `path` contains `text`. Return False after _VISIBLE_WITHIN_SECONDS."""
    deadline = time.monotonic() + _VISIBLE_WITHIN_SECONDS
    while True:
        try:
            if path.read_text() == text:
                return True
        except OSError:
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
