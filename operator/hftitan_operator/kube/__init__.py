"""The Kubernetes adapter of the port, and the operator process that drives it."""
