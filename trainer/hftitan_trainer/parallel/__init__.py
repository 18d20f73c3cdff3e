"""How modules and parameters are split, replicated, or converted for the mesh."""
