"""`make demo`: fine-tune SmolLM2-135M with `hftitan run`, then let the model speak before and after."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from fetch_smollm2 import MODEL, fetch

ROOT = Path(__file__).resolve().parent.parent
JOB = Path("examples/smollm2.yaml")
RUN = Path("runs/smollm2")
PROMPT = "The weather in Paris today"


def say(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def generate(models: dict[str, str]) -> dict[str, str]:
    """Greedy continuations of PROMPT, one for each model; in a child, so that no memory stays with us."""
    code = (
        "import json, logging, sys\n"
        "logging.getLogger('torch.utils._pytree').setLevel(logging.ERROR)  # torchao's, not the user's\n"
        "import transformers as t\n"
        "t.logging.set_verbosity_error(); t.logging.disable_progress_bar()\n"
        "models, prompt, out = json.loads(sys.argv[1]), sys.argv[2], {}\n"
        "for name, path in models.items():\n"
        "    tok = t.AutoTokenizer.from_pretrained(path)\n"
        "    model = t.AutoModelForCausalLM.from_pretrained(path, dtype='float32')\n"
        "    ids = tok(prompt, return_tensors='pt')\n"
        "    text = model.generate(**ids, max_new_tokens=40, do_sample=False, repetition_penalty=1.2)\n"
        "    out[name] = tok.decode(text[0], skip_special_tokens=True)\n"
        "print(json.dumps(out))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, json.dumps(models), PROMPT], check=True, stdout=subprocess.PIPE, text=True
    )
    answer: dict[str, str] = json.loads(result.stdout.splitlines()[-1])
    return answer


def main() -> int:
    os.chdir(ROOT)
    started = time.monotonic()
    say(f"1. The model: {MODEL}")
    os.environ.update(fetch())
    # A demo starts from the beginning each time; a real job would go on from its checkpoint.
    shutil.rmtree(RUN, ignore_errors=True)

    hftitan = str(Path(sys.executable).with_name("hftitan"))
    for step, command in [
        ("2. What the job asks for", [hftitan, "plan", str(JOB)]),
        ("3. The run", [hftitan, "run", str(JOB)]),
    ]:
        say(f"{step}: {' '.join(['hftitan', *command[1:]])}")
        code = subprocess.run(command).returncode
        if code:
            return code

    losses = [
        row["loss"] for line in (RUN / "metrics.jsonl").read_text().splitlines() if "loss" in (row := json.loads(line))
    ]
    first, last = (sum(part) / len(part) for part in (losses[:8], losses[-8:]))
    say(f"4. Loss, mean of eight steps: {first:.3f} at the beginning -> {last:.3f} at the end")
    if not last < first:
        print("The loss did not fall.", file=sys.stderr)
        return 1

    say(f"5. The exported folder {RUN / 'export'} through from_pretrained, before and after")
    for name, text in generate({"before": MODEL, "after": str(RUN / "export")}).items():
        print(f"{name:>7}: {text!r}")
    say(f"Done in {time.monotonic() - started:.0f} s. The job: {JOB}; what it left: {RUN}/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
