"""Pure decisions: naming, rendering, classification, and the next step of a job. No clock, network or files."""
