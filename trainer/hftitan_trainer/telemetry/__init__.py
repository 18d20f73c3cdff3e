"""Step metrics, logs, and trackers."""
