"""The hftitan command line."""
