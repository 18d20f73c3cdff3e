"""Saving, finding and resuming checkpoints; exporting and publishing the model."""
