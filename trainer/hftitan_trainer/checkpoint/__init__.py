"""Saves, finds and loads checkpoints; exports the model and pushes it to the hub."""
