"""Where pods run: one port, an adapter for each kind of cluster."""
