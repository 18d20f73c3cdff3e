"""`make demo`: fine-tunes SmolLM2-135M with `hftitan run`, and compares the model before and after training.

It trains on license texts and reads each token at most once. The validation loss is the loss on one held-out license.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fetch_smollm2 import MODEL, fetch

ROOT = Path(__file__).resolve().parent.parent
JOB = Path("examples/smollm2.yaml")
RUN = Path("runs/smollm2")
PROMPT = "The weather in Paris today"
LICENSES = Path("/usr/share/common-licenses")
HELD_OUT = "Apache-2.0"
"""No other license in the folder contains its text."""
TEXT = ROOT / ".cache/demo"


def say(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def texts() -> tuple[Path, Path]:
    """Copy Debian's license texts. Return (training folder, held-out file)."""
    train, held_out = TEXT / "train", TEXT / HELD_OUT
    shutil.rmtree(TEXT, ignore_errors=True)
    train.mkdir(parents=True)
    for path in LICENSES.iterdir():
        if path.is_file() and not path.is_symlink():
            shutil.copy(path, held_out if path.name == HELD_OUT else train)
    return train, held_out


def judge(models: dict[str, str], held_out: Path) -> dict[str, dict[str, Any]]:
    """Return {"loss": loss on the held-out file, "text": greedy continuation of PROMPT} of each model.

    Uses only transformers. Runs in a child process to free the memory.
    """
    code = (
        "import json, logging, sys\n"
        "logging.getLogger('torch.utils._pytree').setLevel(logging.ERROR)  # warnings about torchao\n"
        "import torch, transformers as t\n"
        "t.logging.set_verbosity_error(); t.logging.disable_progress_bar()\n"
        "models, prompt, held_out = json.loads(sys.argv[1]), sys.argv[2], open(sys.argv[3]).read()\n"
        "out = {}\n"
        "for name, path in models.items():\n"
        "    tok = t.AutoTokenizer.from_pretrained(path)\n"
        "    model = t.AutoModelForCausalLM.from_pretrained(path, dtype='float32')\n"
        "    rows = tok(held_out, return_tensors='pt').input_ids[0].split(256)[:-1]\n"
        "    with torch.no_grad():\n"
        "        losses = [model(input_ids=row[None], labels=row[None]).loss.item() for row in rows]\n"
        "    ids = tok(prompt, return_tensors='pt')\n"
        "    text = model.generate(**ids, max_new_tokens=40, do_sample=False, repetition_penalty=1.2)\n"
        "    out[name] = {'loss': sum(losses) / len(losses), 'text': tok.decode(text[0], skip_special_tokens=True)}\n"
        "print(json.dumps(out))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, json.dumps(models), PROMPT, str(held_out)],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    answer: dict[str, dict[str, Any]] = json.loads(result.stdout.splitlines()[-1])
    return answer


def main() -> int:
    os.chdir(ROOT)
    started = time.monotonic()
    say(f"1. The model: {MODEL}")
    os.environ.update(fetch())
    train, held_out = texts()
    # Start again from step 0. Without this, the job would resume from its checkpoint.
    shutil.rmtree(RUN, ignore_errors=True)

    hftitan = str(Path(sys.executable).with_name("hftitan"))
    settings = [
        f"spec.dataset.path={train}",
        f"spec.validation.dataset.path={held_out}",
        "spec.validation.interval=10",
        "spec.validation.steps=5",
    ]
    changes = [word for setting in settings for word in ("--set", setting)]
    for step, command in [
        ("2. The mesh", [hftitan, "plan", str(JOB), *changes]),
        ("3. The run", [hftitan, "run", str(JOB), *changes]),
    ]:
        say(f"{step}: {' '.join(['hftitan', *command[1:]])}")
        code = subprocess.run(command).returncode
        if code:
            return code

    rows = [json.loads(line) for line in (RUN / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "gradNorm" in row]
    epoch = max(row["epoch"] for row in steps)
    losses = [row["loss"] for row in steps]
    first, last = (sum(part) / len(part) for part in (losses[:8], losses[-8:]))
    say(f"4. The model before and after training, loaded from {RUN / 'export'} with from_pretrained")
    found = judge({"before": MODEL, "after": str(RUN / "export")}, held_out)
    for name, answer in found.items():
        print(f"{name:>7}: {answer['text']!r}")
    print(f"training loss, mean of the first and the last eight steps: {first:.3f} -> {last:.3f}")
    print(f"loss on the held-out {HELD_OUT}: {found['before']['loss']:.3f} -> {found['after']['loss']:.3f}")
    print(f"training text read: {epoch:.0%}; below 100 % no text was repeated")
    if epoch >= 1 or found["after"]["loss"] >= found["before"]["loss"]:
        print("The demo failed: the held-out loss must fall, without repeated text.", file=sys.stderr)
        return 1

    say(f"Done in {time.monotonic() - started:.0f} s. Job file: {JOB}. Results: {RUN}/.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
