"""The model folder, and the torchtitan model that wraps a transformers model."""
