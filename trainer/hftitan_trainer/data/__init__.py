"""From files and hub datasets to packed batches of tokens."""
