"""The local adapter of the port: runs rendered pods as processes on this machine."""
