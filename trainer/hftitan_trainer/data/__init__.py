"""Reads files and hub datasets into packed batches of tokens."""
