"""The life of a job: why an attempt ended, what happens next, and the status that says so."""
