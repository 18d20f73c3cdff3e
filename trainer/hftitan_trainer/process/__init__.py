"""The process around the trainer: environment, device, signals, errors, exit report."""
