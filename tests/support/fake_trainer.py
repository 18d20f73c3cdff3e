"""A fake `torchrun -m hftitan_trainer` for tests: it follows the wire contract, without torch.

It is one process per pod, plus a worker in its own session, as with torchrun. A step is a sleep, and a checkpoint is a
file with the step in its name. Nodes other than 0 follow node 0 through the output folder. FAKE is a list of faults,
such as `crash:1:3` (attempt 1 exits at step 3 without an exit report).
"""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

spec = json.loads(Path(os.environ["HFTITAN_CONFIG"]).read_text())
output = Path(os.environ["HFTITAN_OUTPUT"])
attempt, index = int(os.environ["HFTITAN_ATTEMPT"]), int(os.environ["HFTITAN_NODE_INDEX"])
address, port = os.environ["HFTITAN_POD_IP"], spec["monitoring"]["port"]
steps, seconds = spec["training"]["steps"], float(os.environ.get("FAKE_STEP", "0.05"))
orders = [word.split(":") for word in os.environ.get("FAKE", "").split()]
checkpoints = output / "checkpoint"
checkpoints.mkdir(exist_ok=True)
state = {"attempt": attempt, "phase": "starting", "step": 0, "steps": steps, "updated": time.time()}
stopping = threading.Event()


def ordered(verb: str) -> int | None:
    """Return the step at which FAKE orders a fault for this attempt, or None."""
    for word in orders:
        if word[0] == verb and int(word[1]) == attempt:
            return int(word[2])
    return None


def newest() -> int:
    return max((int(path.name.removeprefix("step-")) for path in checkpoints.glob("step-*")), default=0)


def report(reason: str, retryable: bool, message: str = "") -> None:
    document = {"reason": reason, "message": message, "step": state["step"], "retryable": retryable, "rank": index}
    if newest():
        document["checkpointStep"] = newest()
    if reason == "Completed":
        document["exportPath"] = str(output / "export")
    Path(os.environ["HFTITAN_TERMINATION_LOG"]).write_text(json.dumps(document))


def serve() -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps(state).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer((address, port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def stop(*_):
    stopping.set()


if ordered("stubborn") is not None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, stop)
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(f"agent {os.getpid()} worker {worker.pid} argv {sys.argv[1:]}", flush=True)
logs = Path(os.environ["HFTITAN_LOCAL_LOGS"])
serve()
(output / f"env-{attempt}-{index}.json").write_text(json.dumps(dict(os.environ)))


def say(text: str) -> None:
    """Print a line with the rank mark of the trainer's logs, if FAKE_TALK is set."""
    if "FAKE_TALK" in os.environ:
        print(f"{time.strftime('%H:%M:%S')} [rank {index}] {text}", flush=True)


step = newest()
say(f"INFO attempt {attempt} from step {step}")
state |= {"step": step, "phase": "training", "resumedFrom": step}
done = output / f"done-{attempt}"
while True:
    if stopping.is_set():
        if index == 0:
            (checkpoints / f"step-{state['step']}").touch()
        report("Preempted", True, "stopped by SIGTERM")
        sys.exit(1)
    if (index == 0 and step >= steps) or (index > 0 and done.exists()):
        break
    if index > 0:
        stopping.wait(0.02)
        continue
    stopping.wait(seconds)
    if stopping.is_set():
        continue
    step += 1
    if ordered("crash") == step:
        (logs / f"rank{index}.log").write_text("Traceback (most recent call last):\nBoom: the fake one\n")
        sys.exit(1)
    if ordered("user") == step:
        (logs / f"rank{index}.log").write_text("UserError: no such dataset\n")
        report("UserError", False, "no such dataset")
        sys.exit(1)
    state |= {"step": step, "loss": 5.0 - step / 10, "tokensPerSecond": 1000.0, "updated": time.time()}
    with (output / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "steps": steps, "attempt": attempt, "loss": 5.0 - step / 10}) + "\n")
    say(f"INFO step {step}/{steps}")
    interval = spec["checkpoint"]["interval"]
    if interval and step % interval == 0:
        (checkpoints / f"step-{step}").touch()
    while ordered("hang") == step and not stopping.is_set():
        stopping.wait(1)
if index == 0:
    (output / "export").mkdir(exist_ok=True)
    (checkpoints / f"step-{step}").touch()
    done.touch()
report("Completed", False)
