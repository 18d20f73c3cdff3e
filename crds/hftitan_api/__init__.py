"""The HFTitanJob API: spec and status models, the mesh plan, and the document a pod receives."""
