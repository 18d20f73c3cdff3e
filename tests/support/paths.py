"""Where things are in the checkout."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
CRD = ROOT / "crds" / "hftitanjobs.yaml"
FAKE_TRAINER = ROOT / "tests" / "support" / "fake_trainer.py"
"""Stands in for torchrun and the trainer."""
