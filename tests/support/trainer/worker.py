"""One rank of a test's process group: runs the cases of a folder with the engine and writes rank 0's results.

A case: {"spec": TrainerSpec document, "rows": [...], "export": folder?, "logits": true?, ...}. Without "rows" it uses
the trainer's own data loader, tokenizer and checkpoints, and reports the rows of each step. With "from": [folder, step]
it resumes from that checkpoint of another case. With "by": path, the function `train` of that file runs it.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import runpy
import shutil
import sys
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path

from hftitan_api.wire import TrainerSpec
from hftitan_trainer.process.device import use_device

DEVICE = use_device("gpu" if os.environ.get("TEST_DEVICE") == "gpu" else "cpu")

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch.distributed.tensor import DTensor  # noqa: E402
from torch.distributed.tensor.debug import _clear_sharding_prop_cache  # noqa: E402
from torchtitan.components.checkpointer import CheckpointManager  # noqa: E402
from torchtitan.components.dataloader import BaseDataLoader  # noqa: E402
from torchtitan.components.tokenizer import BaseTokenizer  # noqa: E402

from hftitan_trainer import bridge  # noqa: E402
from hftitan_trainer.checkpoint.export import FILE_BYTES, export_model  # noqa: E402
from hftitan_trainer.checkpoint.manager import checkpoint_config  # noqa: E402
from hftitan_trainer.data.layout import rows_of_a_step  # noqa: E402
from hftitan_trainer.data.loader import dataloader_config  # noqa: E402
from hftitan_trainer.data.tokenizer import tokenizer_config  # noqa: E402
from hftitan_trainer.data.validation import Validation  # noqa: E402
from hftitan_trainer.engine import HFTitanTrainer  # noqa: E402
from hftitan_trainer.model.checks import check_model_on_mesh  # noqa: E402
from hftitan_trainer.model.folder import fetch_model  # noqa: E402
from hftitan_trainer.telemetry.observer import Observer, StepReport  # noqa: E402


class Rows(BaseDataLoader):
    """Gives each data-parallel rank its share of every global batch of the case's rows, repeatedly."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        rows: list = field(default_factory=list)
        global_batch: int

    def __init__(self, config, *, dp_world_size, dp_rank, local_batch_size, **_kwargs):
        self.rows, self.size = config.rows, local_batch_size
        self.share = config.global_batch // dp_world_size
        self.start, self.global_batch = dp_rank * self.share, config.global_batch
        self.taken = 0

    def __iter__(self):
        while True:
            step, inside = divmod(self.taken * self.size, self.share)
            first = step * self.global_batch + self.start + inside
            batch = [self.rows[(first + i) % len(self.rows)] for i in range(self.size)]
            self.taken += 1
            tensors = {key: torch.tensor([row[key] for row in batch]) for key in ("input", "labels", "positions")}
            yield {"input": tensors["input"], "positions": tensors["positions"]}, tensors["labels"]

    def state_dict(self):
        return {"taken": self.taken}

    def load_state_dict(self, state_dict):
        self.taken = state_dict["taken"]


class NoTokenizer(BaseTokenizer):
    @dataclass(kw_only=True, slots=True)
    class Config(BaseTokenizer.Config):
        pass

    def __init__(self, config, *, tokenizer_path):
        pass

    def encode(self, *_args, **_kwargs):
        raise NotImplementedError

    decode = get_vocab_size = encode


class Recorder(Observer):
    def __init__(self, stop_at: int | None = None, small_disk_after: int | None = None) -> None:
        self.small_disk_after = small_disk_after
        self.reports: list[StepReport] = []
        self.phases: list[str] = []
        self.validations: list = []
        self.random: list[str] = []
        self.stop_at = stop_at

    def phase(self, name):
        self.phases.append(name)

    def step(self, report):
        self.reports.append(report)
        if report.step == self.poison_at:  # the loss of the next step becomes a NaN
            for parameter in self.trainer.model.parameters():
                parameter.data.mul_(float("nan"))
        states = [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if DEVICE == "cuda" else [])]
        self.random.append(hashlib.sha256(torch.cat(states).numpy().tobytes()).hexdigest())

    def validated(self, step, loss, tokens, _seconds):
        self.validations.append([step, loss, tokens])

    def saved(self, step, seconds):
        if step != self.small_disk_after:
            return
        self.trainer.checkpointer.maybe_wait_for_saving()
        if dist.get_rank() == dist.get_world_size() - 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (512, resource.RLIM_INFINITY))

    def stop_requested(self):
        # A request of the last rank alone must stop all of them.
        validating = bool(self.phases) and self.phases[-1] == "validating"
        wanted = self.trainer.step == self.stop_at and validating == self.stop_in_validation
        return dist.get_rank() == dist.get_world_size() - 1 and wanted


def configure(case: dict, output: Path):
    """Return torchtitan's configuration of a case."""
    spec = TrainerSpec.model_validate(case["spec"])
    model = fetch_model(spec.model)
    initial = str(model.path) if model.pretrained else None
    if "rows" in case:
        dataloader, tokenizer = Rows.Config(rows=case["rows"], global_batch=rows_of_a_step(spec)), NoTokenizer.Config()
        checkpoint = CheckpointManager.Config(
            enable=True,
            interval=spec.checkpoint.interval or bridge.NEVER,
            initial_load_path=initial,
            initial_load_in_hf=model.pretrained,
            last_save_model_only=False,
            load_only=not spec.checkpoint.interval,
            keep_latest_k=0,
        )
    else:
        dataloader = dataloader_config(spec.dataset, rows=rows_of_a_step(spec), seed=spec.training.seed)
        tokenizer, checkpoint = tokenizer_config(), checkpoint_config(spec, initial_load_path=initial)
    bridge.check_model_on_mesh = (lambda *_args: None) if case.get("unchecked") else check_model_on_mesh
    return bridge.build_config(spec, model, output, dataloader=dataloader, tokenizer=tokenizer, checkpoint=checkpoint)


def run(case: dict, output: Path) -> dict:
    trainer_spec = TrainerSpec.model_validate(case["spec"])
    recorder = Recorder(case.get("stopAt"), case.get("smallDiskAfter"))
    if "from" in case and dist.get_rank() == 0:
        source, step = case["from"]
        shutil.copytree(Path(source) / f"checkpoint/step-{step}", output / f"checkpoint/step-{step}")
    trainer = HFTitanTrainer(configure(case, output), recorder)
    recorder.trainer = trainer
    recorder.stop_in_validation = case.get("stopInValidation", False)
    consumed = watch_rows(trainer)
    if trainer_spec.validation is not None:
        trainer.validation = Validation(trainer, trainer_spec, trainer.observer, trainer.agreed_to_stop)
    if case.get("forwards"):
        result = {"losses": [first_loss(trainer, case["rows"][:1]) for _ in range(case["forwards"])]}
        trainer.close()
        return result
    recorder.poison_at = case.get("poison")
    outcome = trainer.train()
    if case.get("export"):
        export_model(trainer, Path(case["export"]), "float32", case.get("fileBytes", FILE_BYTES))
    result = {
        "steps": [asdict(report) for report in recorder.reports],
        "phases": recorder.phases,
        "outcome": asdict(outcome),
        "validations": recorder.validations,
        "random": recorder.random,
        "first_random": on_all_ranks(recorder.random[:1]),
        "mode": {part.training for part in trainer.model_parts} == {True},
    }
    if case.get("logits"):
        result["logits"] = logits(trainer, case["rows"][0])
    if "rows" not in case:
        result["consumed"] = over_all_ranks(trainer, consumed)
    trainer.close()
    return result


def watch_rows(trainer: HFTitanTrainer) -> dict[int, list[str]]:
    """Return a dict that training fills with the rows that this rank takes in each step."""
    consumed: dict[int, list[str]] = {}
    batches = trainer.batch_generator

    def watched(data):
        for inputs, labels in batches(data):
            rows = torch.cat([inputs["input"], inputs["positions"], labels], dim=1)
            consumed.setdefault(trainer.step, []).extend(" ".join(map(str, row)) for row in rows.tolist())
            yield inputs, labels

    trainer.batch_generator = watched
    return consumed


def on_all_ranks(value) -> list:
    everybody: list = [None] * dist.get_world_size()
    dist.all_gather_object(everybody, value)
    return everybody


def over_all_ranks(trainer: HFTitanTrainer, consumed: dict[int, list[str]]) -> dict[int, list[str]]:
    """Return by step the rows of all data-parallel ranks in order. Ranks of one batch must have read the same rows."""
    dims = trainer.parallel_dims
    mine = dims.get_mesh("batch").get_local_rank() if dims.dp_enabled else 0
    shares = {}
    for rank, rows in on_all_ranks((mine, consumed)):
        assert shares.setdefault(rank, rows) == rows, "ranks of one batch read different rows"
    return {step: [row for rank in sorted(shares) for row in shares[rank][step]] for step in consumed}


@torch.no_grad()
def first_loss(trainer: HFTitanTrainer, rows: list) -> float:
    """Fill the model's memory with garbage, initialise and load it again, and return the loss of `rows`."""
    model = trainer.model
    for tensor in [*model.parameters(), *model.buffers()]:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        local.copy_(torch.randn_like(local.float()) * 1e9)
    model.init_states()
    trainer.checkpointer.load()
    keys = ("input", "labels", "positions")
    tensors = {key: torch.tensor([row[key] for row in rows], device=trainer.device) for key in keys}
    with trainer.train_context():
        out = model(tensors["input"], positions=tensors["positions"])
        loss, _ = trainer.loss_fn(out, tensors["labels"], (tensors["labels"] != -100).sum())
    return loss.item()


@torch.no_grad()
def logits(trainer: HFTitanTrainer, row: dict) -> list:
    """Return the trained model's logits of one row, read as one document, from memory. Without pipeline stages."""
    tokens = torch.tensor([row["input"]], device=trainer.device)
    with trainer.train_context():
        out = trainer.model(tokens, positions=torch.arange(tokens.shape[1], device=trainer.device)[None])
    if trainer.parallel_dims.tp_enabled:
        group = trainer.parallel_dims.get_mesh("tp").get_group()
        parts = [torch.empty_like(out) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, out.contiguous(), group=group)
        out = torch.cat(parts, dim=-1)
    return out[0].tolist()


def main() -> None:
    # As torchtitan does when it creates the group: collectives in the backward pass stay in order.
    torch.autograd.set_multithreading_enabled(False)
    if DEVICE == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    folder = Path(sys.argv[1])
    results = []
    for number, case in enumerate(json.loads((folder / "cases.json").read_text())):
        # Each case has its own process group with a file store: other programs may take a port chosen in advance.
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        store = dist.FileStore(str(folder / f"store{number}"), world)
        backend = "cpu:gloo,cuda:nccl" if DEVICE == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timedelta(seconds=60))
        sys.excepthook = sys.__excepthook__  # each group would add one more "[rank0]: " to every line
        try:
            train = runpy.run_path(case["by"])["train"] if "by" in case else run
            results.append(train(case, Path(case.get("output", folder / f"out{number}"))))
        except Exception as error:
            if not case.get("fails"):
                raise
            results.append({"error": type(error).__name__, "message": str(error)})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        dist.barrier()
        dist.destroy_process_group()
        _clear_sharding_prop_cache()  # holds the meshes of this group
    if os.environ["RANK"] == "0":
        (folder / "results.json").write_text(json.dumps(results))
    # Exit as the trainer does: gloo's groups for asynchronous saves sometimes abort when they are destroyed at the
    # exit.
    os._exit(0)


if __name__ == "__main__":
    main()
