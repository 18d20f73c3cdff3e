"""bench/gpu.py on a machine without a GPU: it runs, and torchtitan's own llama3 has the same losses."""

from __future__ import annotations

import re
import subprocess
import sys

from paths import ROOT

BENCH = ROOT / "bench" / "gpu.py"


def test_quick_measures_both_models_and_their_losses_agree():
    ran = subprocess.run([sys.executable, BENCH, "--quick"], capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr[-4000:]
    rates = re.findall(r"^2 layers, 64 tokens, (.+?) +([\d.]+) tokens/s  MFU +- ", ran.stdout, re.MULTILINE)
    assert [name for name, _ in rates] == ["compiled", "ours", "torchtitan's own llama3"]
    assert all(float(rate) > 0 for _, rate in rates)
    losses = re.findall(r"^step +\d+  loss ([\d.]+)  ([\d.]+)  ([-+\d.e]+)$", ran.stdout, re.MULTILINE)
    assert len(losses) == 5
    assert max(abs(float(difference)) for _, _, difference in losses) < 1e-5
    assert float(losses[-1][0]) < float(losses[0][0])
