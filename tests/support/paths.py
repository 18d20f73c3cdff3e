"""Paths in the checkout."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
CRD = ROOT / "crds" / "hftitanjobs.yaml"
FAKE_TRAINER = ROOT / "tests" / "support" / "fake_trainer.py"
"""Used instead of torchrun and the trainer."""
