"""Splits, replicates, or converts modules and parameters for the mesh."""
