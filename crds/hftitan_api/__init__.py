"""The HFTitanJob API: models of spec and status, the mesh plan, and the contract between operator and trainer."""
